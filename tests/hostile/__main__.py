"""``scripts/fuzz``: the targets in turn, each under libFuzzer in a process of its own."""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

#: An input that takes longer hangs; more memory than this is too much.
LONGEST_S, MOST_MIB = 20, 4096


def fuzz_one(name: str, seconds: int, seed: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["streamkm", "numpy.lib._format_impl", "zarr"]):
        from tests.hostile.mutate import mutate
        from tests.hostile.targets import TARGETS, parse

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    corpus = folder / "corpus"
    for path in (corpus, folder / "seeds"):
        path.mkdir(parents=True)
    for number, content in enumerate(TARGETS[name].seeds(folder / "seeds")):
        (corpus / f"seed-{number}").write_bytes(content)

    def mutated(content: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return atheris.Mutate(content, most)  # type: ignore[no-any-return]
        return mutate(content, rng)[:most]

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed + 1}", f"-timeout={LONGEST_S}",
         f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix={folder}/found-", "-max_len=65536",
         "-print_final_stats=1", str(corpus)],
        lambda content: parse(name, content, folder / "input"),
        custom_mutator=mutated,
    )  # fmt: skip
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--target", default="", help="only those with this in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("fuzz-output"),
        help="where inputs that were found are kept (default: %(default)s)",
    )
    parser.add_argument("--only", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        fuzz_one(arguments.only, arguments.seconds, arguments.seed, arguments.keep)
    from tests.hostile.targets import TARGETS

    figures, n_found = {}, 0
    for name in TARGETS:
        if arguments.target not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            ended = subprocess.run(
                [sys.executable, "-m", "tests.hostile", "--only", name, "--keep", folder,
                 "--seconds", str(arguments.seconds), "--seed", str(arguments.seed)],
                capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
            found = list(Path(folder).glob("found-*"))
            for path in found:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                kept = arguments.keep / f"{name.replace(' ', '_')}-{path.name}"
                kept.write_bytes(path.read_bytes())
        counted = re.search(r"number_of_executed_units: *(\d+)", ended.stderr)
        reached = re.findall(r"\bcov: (\d+)", ended.stderr)
        figures[name] = {
            "inputs": int(counted[1]) if counted else 0,
            "coverage": int(reached[-1]) if reached else 0,
            "found": len(found) + (ended.returncode != 0 and not found),
        }
        n_found += figures[name]["found"]
        print(f"{name:26} {figures[name]}", file=sys.stderr, flush=True)
        if figures[name]["found"]:
            print(ended.stdout[-3000:] + ended.stderr[-1500:], file=sys.stderr, flush=True)
    print(json.dumps({"seed": arguments.seed, "seconds": arguments.seconds, "targets": figures}))
    n_inputs = sum(counts["inputs"] for counts in figures.values())
    print(f"{n_inputs} inputs to {len(figures)} parsers, {n_found} found (seed {arguments.seed})",
          file=sys.stderr)  # fmt: skip
    return 1 if n_found else 0


if __name__ == "__main__":
    sys.exit(main())
