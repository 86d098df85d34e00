"""The command line: turns words into arguments, and what goes wrong into a line and a status.

argparse was chosen over tyro, which makes a command line from dataclasses. argparse keeps an error
to the one line that is promised, and imports fast enough to answer a mistyped path at once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from streamkm import __version__
from streamkm.commands import run_evaluate, run_fit, run_info, run_predict, run_report, run_sweep
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import ConfigError, ElsewhereError, StreamkmError
from streamkm.export_command import EXPORT_SUMMARY, add_export_options, run_export
from streamkm.files import expanded
from streamkm.machine import cores_by_quota
from streamkm.options import (
    WEIGHTS_HELP,
    add_execution_options,
    add_fit_options,
    add_labelling_options,
    add_predict_options,
    add_report_options,
    add_source,
    add_sweep_options,
    configured,
    settings_for,
)
from streamkm.partition_command import PARTITION_SUMMARY, add_partition_options, run_partition
from streamkm.process import prepare_process
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.starting import n_to_start
from streamkm.text import TIME_FORMAT, with_spans_joined
from streamkm.wrong_options import check_options, flag_before

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


__all__ = ["main"]

#: Errors of a path that cannot be used: another one would not raise them.
_OF_THE_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        The exit status: 0 done; 2 wrong arguments or unusable input; 75 interrupted, with a
        checkpoint saved; 1 anything else.
    """
    stamp = "" if sys.stderr.isatty() else "%(asctime)s "
    logging.basicConfig(
        format=f"{stamp}streamkm: %(message)s", datefmt=TIME_FORMAT, level=logging.INFO
    )
    has_threads = "OMP_NUM_THREADS" in os.environ
    prepare_process(cores_by_quota())
    try:
        words = with_spans_joined(sys.argv[1:] if argv is None else argv)
        arguments = _parse(words)
        if (n_processes := n_to_start(configured(ExecutionConfig, arguments))) > 1:
            if not has_threads:  # The processes share the cores.
                os.environ.pop("OMP_NUM_THREADS", None)
            from streamkm.distributed.launching import launch

            return launch(n_processes, ["-m", "streamkm", *words])
        # For a failed allocation where fit and predict do not name the phase themselves.
        with memory_told(lambda: "at work", resumable=False):
            arguments.command(arguments)
        sys.stdout.flush()
    except StreamkmError as error:
        # What another process has told is not told again.
        if not isinstance(error, ElsewhereError) and error.for_command_line:
            _complain(error.for_command_line)
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted; what was not saved before is lost")
        return 1
    except BrokenPipeError:
        # Who read the output, such as head, has seen enough.
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        # A path that cannot be used is an argument to change; a full disk is not.
        return 2 if error.errno in _OF_THE_PATH else 1
    return 0


def _complain(message: str) -> None:
    with suppress(OSError):  # The status tells it too, where stderr cannot be written.
        print("streamkm: " + " ".join(message.split()), file=sys.stderr)


# ---- arguments --------------------------------------------------------------


_EXAMPLES = """
  streamkm fit x.npy --k 100 --out run             cluster the rows of x.npy
  streamkm predict run x.npy --labels labels.npy   write the label of every row
  streamkm info x.npy                              describe an array, or a run

All commands and options: streamkm --help, streamkm fit --help
"""


#: Each command: what it needs, what it runs, and what that does.
_COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], None], str]] = {
    "fit": ("SOURCE --k K --out RUN", run_fit, "Cluster an array and write a run folder."),
    "predict": (
        "RUN SOURCE --labels OUT", run_predict, "Write the label of every row of an array.",
    ),
    "evaluate": (
        "RUN SOURCE",
        run_evaluate,
        "Measure the clusters of a run on an array: inertia, sizes and quality indices.",
    ),
    "partition": ("RUN SOURCE --out DIR", run_partition, PARTITION_SUMMARY),
    "export": ("RUN --to FORMAT --out FILE", run_export, EXPORT_SUMMARY),
    "report": ("RUN [SOURCE]", run_report, "Write an HTML page about a run or a sweep."),
    "sweep": (
        "SOURCE --k K [K ...] --out DIR",
        run_sweep,
        "Fit many K with one read of the array, compare them, and say which stands out.",
    ),
    "info": ("PATH", run_info, "Describe an array, or a run or sweep and how far it has come."),
}  # fmt: skip

_COMMAND = "COMMAND ..."  # In the help the column of commands is as wide as this.


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line that names the help; allows no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        one_line = " ".join(message.split())
        self.exit(2, f"streamkm: {one_line} (see {self.prog} --help)\n")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    if not argv:
        parser.exit(2, f"{parser.format_usage()}\n{parser.description}\n{_EXAMPLES}")
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    check_options(argv, parser, commands)
    arguments, left = parser.parse_known_args(argv)
    if len(left) == 1 and not left[0].startswith("-") and getattr(arguments, "source", "") is None:
        # argparse fills an optional SOURCE with nothing as soon as an option stands after RUN.
        arguments.source = left.pop()
    if left:
        said = " ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        # Words without a dash are what a shell makes of a pattern without quotes.
        if flag := flag_before(left[0], argv, commands):
            said += f"; {flag}"
        elif not any(word.startswith("-") for word in left):
            said += "; one source is read: quote a pattern ('data/*.npy'), or list its files "
            said += "in a text file (@files.txt)"
        arguments.parser.error(f"unrecognized arguments: {said}")
    if getattr(arguments, "config", None) is not None:
        _apply_config(arguments.config, commands["fit"])
        arguments = parser.parse_args(argv)
    if arguments.command is run_fit and arguments.from_run is None:
        for each in settings_for("fit", FitConfig):
            if each.is_required and getattr(arguments, each.name) is None:
                commands["fit"].error(f"the {each.text} is needed: {each.flag}")
    return arguments


def _apply_config(path: Path, parser: argparse.ArgumentParser) -> None:
    """Make the settings in a TOML file defaults, which options on the command line override."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    settings = settings_for("fit", FitConfig, ExecutionConfig)
    known = {e.flag[2:].replace("-", "_"): e.name for e in settings} | {"weights": "weights"}
    flags = {each.name for each in settings if each.parse is None}
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        if not (name := known.get(key.replace("-", "_"), "")):
            raise ConfigError(
                f"--config {path}: there is no setting {key!r}; "
                f"there are {', '.join(sorted(known)).replace('_', '-')}"
            )
        if name in defaults:
            raise ConfigError(f"--config {path}: {key} is there twice, with - and with _")
        if isinstance(value, dict | list):
            raise ConfigError(f"--config {path}: {key} must be one value, not {value!r}")
        # argparse parses a default that is a string as if it had been typed, but not a flag's.
        defaults[name] = value if isinstance(value, str) or name in flags else str(value)
    parser.set_defaults(**defaults)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="streamkm",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="Cluster arrays larger than memory with k-means. An interrupted run resumes "
        "where it stopped.",
        epilog="streamkm COMMAND --help lists the options of a command. Exit status: 0 done; "
        "2 wrong arguments or unusable input; 75 interrupted with a checkpoint saved; "
        "1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"streamkm {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar=_COMMAND, prog=parser.prog, required=True
    )
    by_name = {name: _add_command(commands, name, *each) for name, each in _COMMANDS.items()}
    _add_options(by_name)
    return parser, by_name


def _add_options(commands: dict[str, _Parser]) -> None:
    fit, predict, evaluate = (commands[name] for name in ("fit", "predict", "evaluate"))
    add_source(fit)
    add_fit_options(fit)
    for parser, left_out in ((predict, ("sample", "sample_seed")), (evaluate, ())):
        parser.add_argument("run", metavar="RUN", type=expanded, help="folder of a finished run")
        add_source(parser, without=left_out)
        add_labelling_options(parser)
    add_predict_options(predict)
    add_partition_options(commands["partition"])
    add_export_options(commands["export"])
    evaluate.add_argument(
        "--json", action="store_true", help="print JSON, with the size of every cluster"
    )
    add_report_options(commands["report"])
    for parser in (fit, evaluate, commands["report"]):
        parser.add_argument("--weights", metavar="LOCATION", type=expanded, help=WEIGHTS_HELP)
    add_source(commands["sweep"])
    add_sweep_options(commands["sweep"])
    for name in commands.keys() - {"info", "export"}:
        add_execution_options(commands[name], name)
    add_source(commands["info"], "PATH", "the folder of a run or a sweep, or an array: ")


def _add_command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    needed: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> _Parser:
    # argparse's own usage would name every option before the first thing that is needed.
    usage = f"%(prog)s {needed} [options]"
    added = commands.add_parser(name, usage=usage, help=summary, description=summary)
    added.set_defaults(command=run, parser=added)
    return added
