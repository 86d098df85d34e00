"""The command line: arguments become a config, and a config becomes a run.

argparse was chosen over a generator of command lines from dataclasses (tyro):
its errors can be kept to the one line that is promised, and nothing that is
slow to import stands between a mistyped path and the answer. torch is imported
by the commands that need it, after everything that can be refused without it.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import tomllib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from streamkm import __version__
from streamkm.config import KERNELS, Cadence, ExecutionConfig, FitConfig, parse_bytes
from streamkm.errors import ConfigError, StreamkmError
from streamkm.runs.preflight import give_back_large_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamkm.sources import Source

__all__ = ["main"]

SOURCE_HELP = (
    "x.npy, x.zarr, store.zarr/group/array, .fbin .u8bin .i8bin .fvecs .bvecs, a raw file with "
    "--dtype and --features, or a folder or glob of shards; the last axis is features"
)
CLOSING_HELP = (
    "minibatch: end with a full pass that makes each centroid the mean of its cluster "
    "(default: yes)"
)
PRECISION_HELP = "fast: rows that screening cannot tell apart are not scored again (default: exact)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done; 2 wrong arguments or unusable input; 75 interrupted, with a
    checkpoint saved; 1 anything else.
    """
    logging.basicConfig(format="streamkm: %(message)s", level=logging.INFO)
    give_back_large_blocks()
    # Readers share the cores with OpenMP's threads, which by default spin long at every
    # barrier for one that has no core: beside other work arithmetic took twice as long.
    # (Not spinning at all costs half again on a quiet machine.) Read once, when torch is
    # imported; what the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        arguments = _parse(sys.argv[1:] if argv is None else list(argv))
        arguments.command(arguments)
    except StreamkmError as error:
        _complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted; nothing was saved since the last checkpoint")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        # An output that may not be written is an argument to change; a full disk is not.
        return 2 if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else 1
    return 0


def _complain(message: str) -> None:
    print("streamkm: " + " ".join(message.split()), file=sys.stderr)


# ---- commands ---------------------------------------------------------------


def _fit(arguments: argparse.Namespace) -> None:
    from streamkm.runs.folder import check_run_is_free
    from streamkm.runs.interrupts import StopRequest
    from streamkm.runs.preflight import check_fit

    config = FitConfig(**{name: getattr(arguments, name) for name in _FIT_SETTINGS})
    execution = _execution(arguments)
    with StopRequest() as stop_request, closing(_open(arguments)) as source:
        check_fit(source.spec, config, source.name)
        check_run_is_free(arguments.out, resume=arguments.resume)

        from streamkm.runs.fit import fit

        fit(
            source,
            config,
            execution,
            arguments.out,
            resume=arguments.resume,
            stop_request=stop_request,
        )


def _predict(arguments: argparse.Namespace) -> None:
    from streamkm.runs.folder import read_config
    from streamkm.runs.interrupts import StopRequest
    from streamkm.sources.sinks import check_target

    execution = _execution(arguments)
    read_config(arguments.run)
    for target in filter(None, (arguments.labels, arguments.distances)):
        check_target(target, resume=arguments.resume)
    with StopRequest() as stop_request, closing(_open(arguments)) as source:
        from streamkm.runs.predict import predict

        predict(
            arguments.run,
            source,
            execution,
            labels=arguments.labels,
            distances=arguments.distances,
            nan=arguments.nan,
            resume=arguments.resume,
            stop_request=stop_request,
        )


def _evaluate(arguments: argparse.Namespace) -> None:
    from streamkm.runs.folder import read_config
    from streamkm.runs.interrupts import StopRequest

    execution = _execution(arguments)
    read_config(arguments.run)
    with StopRequest() as stop_request, closing(_open(arguments)) as source:
        from streamkm.runs.evaluate import evaluate

        evaluation = evaluate(
            arguments.run, source, execution, nan=arguments.nan, stop_request=stop_request
        )
    print(json.dumps(evaluation.as_dict()) if arguments.json else evaluation)


def _info(arguments: argparse.Namespace) -> None:
    from streamkm.runs.info import describe_run, describe_source

    if (Path(arguments.source) / "config.json").exists():
        print(describe_run(Path(arguments.source)))
    else:
        with closing(_open(arguments)) as source:
            print(describe_source(source))


def _open(arguments: argparse.Namespace) -> Source:
    from streamkm.sources import open_source

    return open_source(
        arguments.source,
        dtype=arguments.dtype,
        n_features=arguments.features,
        offset=arguments.offset,
    )


def _execution(arguments: argparse.Namespace) -> ExecutionConfig:
    given = {name: getattr(arguments, name, None) for name in _EXECUTION_SETTINGS}
    return ExecutionConfig(**{name: value for name, value in given.items() if value is not None})


# ---- arguments --------------------------------------------------------------

_FIT_SETTINGS = (
    "k", "algorithm", "epochs", "batch_rows", "init", "metric", "scale", "tol",
    "max_no_improvement", "seed", "nan", "closing_pass", "precision",
)  # fmt: skip
_FLAGS = ("closing_pass",)
_EXECUTION_SETTINGS = (
    "device", "checkpoint_every", "keep_checkpoints", "max_host_memory", "read_threads",
    "kernel",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where help is; options are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"streamkm: {message} (see {self.prog} --help)\n")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "config", None) is not None:
        _apply_config(arguments.config, commands["fit"])
        arguments = parser.parse_args(argv)
    if arguments.command is _fit and arguments.k is None:
        commands["fit"].error("the number of clusters is needed: --k")
    return arguments


def _apply_config(path: Path, parser: argparse.ArgumentParser) -> None:
    """Make the settings in a TOML file the defaults that options on the command line override."""
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    known = set(_FIT_SETTINGS + _EXECUTION_SETTINGS)
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"--config {path}: there is no setting {key!r}; "
                f"there are {', '.join(sorted(known)).replace('_', '-')}"
            )
        if isinstance(value, dict | list):
            raise ConfigError(f"--config {path}: {key} must be one value, not {value!r}")
        # argparse converts defaults that are strings as if they had been typed; not a flag's.
        defaults[name] = value if isinstance(value, str) or name in _FLAGS else str(value)
    parser.set_defaults(**defaults)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="python -m streamkm",
        description="Cluster arrays larger than memory with k-means, and resume after anything.",
        epilog="Exit status: 0 done; 2 wrong arguments or unusable input; 75 interrupted with a "
        "checkpoint saved; 1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"streamkm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> _Parser:
        added: _Parser = commands.add_parser(
            name,
            help=summary,
            description=summary,
        )
        added.set_defaults(command=run)
        return added

    fit = command("fit", _fit, "Cluster an array and write a run folder.")
    _add_source(fit)
    _add_fit_options(fit)
    predict = command("predict", _predict, "Write the label of every row of an array.")
    evaluate = command("evaluate", _evaluate, "Exact inertia and cluster sizes on an array.")
    for parser_ in (predict, evaluate):
        parser_.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
        _add_source(parser_)
        parser_.add_argument(
            "--nan",
            choices=("error", "drop"),
            help="rows with NaN or infinity: stop, or label them -1 (default: as in the run)",
        )
    predict.add_argument(
        "--labels", metavar="OUT", type=Path, required=True, help="labels, .npy or .zarr"
    )
    predict.add_argument(
        "--distances", metavar="OUT", type=Path, help="Euclidean distances, .npy or .zarr"
    )
    predict.add_argument(
        "--resume", action="store_true", help="go on with outputs that were left unfinished"
    )
    _add_checkpoint_every(predict)
    evaluate.add_argument("--json", action="store_true", help="print JSON, with every size")
    for parser_ in (fit, predict, evaluate):
        _add_execution_options(parser_)
    info = command("info", _info, "What a path holds: a source, or a run and how far it has come.")
    _add_source(info, metavar="PATH")
    return parser, {"fit": fit}


def _add_source(parser: _Parser, metavar: str = "SOURCE") -> None:
    parser.add_argument("source", metavar=metavar, help=SOURCE_HELP)
    group = parser.add_argument_group("raw files")
    group.add_argument("--dtype", help="element type, such as float16, bfloat16 or >f4")
    group.add_argument("--features", metavar="D", type=int, help="features of a row")
    group.add_argument(
        "--offset",
        metavar="BYTES",
        type=int,
        default=0,
        help="bytes before the first row (default: %(default)s)",
    )


def _add_fit_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("--k", type=int, help="number of clusters")
    add("--out", metavar="RUN", type=Path, required=True, help="run folder to write")
    add("--resume", action="store_true", help="go on with RUN, or start it")
    add("--config", metavar="TOML", type=Path, help="file of options; those given here win")
    group = parser.add_argument_group("what to compute (decides the result)")
    add = group.add_argument
    add(
        "--algorithm",
        choices=("minibatch", "lloyd"),
        default="minibatch",
        help="when to update (default: %(default)s)",
    )
    add("--epochs", type=int, help="passes at most (default: 1, for lloyd 100)")
    add("--batch-rows", type=int, help="rows of a batch at most (default: by the array's shape)")
    add(
        "--init",
        default="k-means++",
        help="k-means++, random, or k x D centroids in a .npy file (default: %(default)s)",
    )
    add(
        "--metric",
        choices=("euclidean", "cosine"),
        default="euclidean",
        help="distance (default: %(default)s)",
    )
    add(
        "--scale",
        choices=("none", "zscore", "minmax", "l2"),
        default="none",
        help="what to do to the features first (default: %(default)s)",
    )
    add(
        "--tol",
        type=float,
        help="stop at this squared centroid shift, in units of the features' mean variance "
        "(default: 1e-4 for lloyd, off for minibatch)",
    )
    add(
        "--max-no-improvement",
        metavar="STEPS",
        type=int,
        help="minibatch: stop when the smoothed inertia has not improved for so many steps "
        "(default: never)",
    )
    add("--seed", type=int, default=0, help="decides order and every draw (default: %(default)s)")
    add(
        "--nan",
        choices=("error", "drop"),
        default="error",
        help="rows with NaN or infinity: stop, or leave them out (default: %(default)s)",
    )
    flag = argparse.BooleanOptionalAction
    add("--closing-pass", action=flag, default=True, help=CLOSING_HELP)
    add("--precision", choices=("exact", "fast"), default="exact", help=PRECISION_HELP)


def _add_execution_options(parser: _Parser) -> None:
    group = parser.add_argument_group("how to compute (does not change the result)")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:I (default: %(default)s)"
    )
    group.add_argument(
        "--kernel", choices=("auto", *KERNELS), help="who does the arithmetic (default: auto)"
    )
    group.add_argument(
        "--max-host-memory",
        metavar="SIZE",
        type=_typed(parse_bytes),
        help="such as 8GiB, beyond what importing takes (default: 8GiB or half the machine's)",
    )
    group.add_argument(
        "--read-threads",
        metavar="N",
        type=int,
        help="reading threads; 0 reads between batches (default: one a core)",
    )
    if parser.prog.endswith("fit"):
        _add_checkpoint_every(group)
        group.add_argument(
            "--keep-checkpoints",
            metavar="N",
            type=int,
            default=2,
            help="newest to keep (default: %(default)s)",
        )


def _add_checkpoint_every(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--checkpoint-every",
        metavar="60s|N",
        type=_typed(Cadence.parse),
        default="60s",
        help="time or number of batches between saves (default: %(default)s)",
    )


def _typed(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """`convert` with its own message where argparse would put one that says less."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted
