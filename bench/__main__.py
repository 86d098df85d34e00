"""Measure streamkm and its peers: `python -m bench`, or `scripts/bench`.

Runs pytest on the benchmarks of this folder, prints one table and writes every sample to a file.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from bench.measure import DEFAULT_FOLDER, SESSION_PLUGIN, Session
from bench.report import environment, table, write_json

FOLDER = Path(__file__).parent
NAMES = ("fit", "growth", "memory", "checkpoint", "read", "kernel", "quality")


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    session = Session(arguments.rounds, arguments.quick, arguments.data)
    described = environment()
    names = arguments.only or NAMES
    status = pytest.main(
        [
            *(str(FOLDER / f"test_{name}.py") for name in names),
            f"--rootdir={FOLDER.parent}",
            f"--config-file={FOLDER.parent / 'pyproject.toml'}",
            "--benchmark-enable",
            "--benchmark-quiet",
            "--quiet",
            "-pno:cacheprovider",
            "--override-ini=faulthandler_timeout=0",  # a long benchmark is not a hung one
        ],
        plugins=[_Plugin(session)],
    )
    if session.comparisons:
        out = arguments.out or _default_out(described["date"], quick=arguments.quick)
        write_json(out, session, described)
        print(table(session, described), f"written: {out}", sep="\n")
    return int(status)


class _Plugin:
    """Hands the session to the benchmarks."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._session, SESSION_PLUGIN)


def _default_out(date: str, *, quick: bool) -> Path:
    return FOLDER / "results" / f"{date[:10]}{'-quick' if quick else ''}.json"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure streamkm and its peers in turn; prints one table. In full it takes "
        "about half an hour, and 10 GB of disk for generated arrays.",
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=NAMES,
        help=f"one of {', '.join(NAMES)}; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", metavar="N", type=_count, default=5, help="times that each contender runs (5)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes: shows that it runs, measures nothing"
    )
    parser.add_argument(
        "--out", metavar="JSON", type=Path, help="results (bench/results/<date>.json)"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path,
        default=Path(os.environ.get("STREAMKM_BENCH_DATA", DEFAULT_FOLDER)),
        help="generated arrays (STREAMKM_BENCH_DATA, else bench/.data)",
    )  # fmt: skip
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
