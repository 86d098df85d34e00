"""The options of the command line, by what they are about."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamkm.config import KERNELS, Cadence, parse_bytes
from streamkm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DRY_RUN_HELP",
    "WEIGHTS_HELP",
    "add_checkpoint_every",
    "add_execution_options",
    "add_fit_options",
    "add_source",
    "check_options",
]

SOURCE_HELP = (
    "x.npy, x.zarr, store.zarr/group/array, .fbin .u8bin .i8bin .fvecs .bvecs, .parquet, .h5 "
    ".hdf5 .h5ad, a raw file with "
    "--dtype and --features, a folder or glob of shards, or the address of a Zarr array "
    "(s3://, gs://, https://); the last axis is features"
)
CLOSING_HELP = (
    "minibatch: end with a full pass that makes each centroid the mean of its cluster "
    "(default: yes)"
)
PRECISION_HELP = "fast: rows that screening cannot tell apart are not scored again (default: exact)"
PROBE_HELP = (
    "measure for a second at the start what reading, copying and arithmetic can do alone, and "
    "say at the end what share of that was reached"
)
DRY_RUN_HELP = (
    "write nothing: print what the run will do and need, how long it will take, and what speaks "
    "against it"
)
WEIGHTS_HELP = "how much each row counts: N numbers in a .npy file or a Zarr array"


def add_source(parser: argparse.ArgumentParser, metavar: str = "SOURCE") -> None:
    """A location of rows, and what raw files do not say themselves."""
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
    group = parser.add_argument_group("files of several arrays")
    group.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        help="of Parquet: a column of lists, or one of numbers; repeat it for each feature "
        "(default: the only column of lists, or all)",
    )
    group.add_argument(
        "--dataset", metavar="NAME", help="of HDF5, such as obsm/X_pca (default: the only one)"
    )


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """What a fit is asked to do."""
    add = parser.add_argument
    add("-k", "--k", type=int, help="number of clusters")
    add("--out", metavar="RUN", type=Path, required=True, help="run folder to write")
    add("--resume", action="store_true", help="go on with RUN, or start it")
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
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
        default="auto",
        help="auto, random, k-means++, k-means||, or k x D centroids in a .npy file "
        "(default: %(default)s)",
    )
    add("--n-init", metavar="N", type=int, default=1, help="best of N seedings (default: 1)")
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


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """How a command is carried out."""
    group = parser.add_argument_group("how to compute (does not change the result)")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:I (default: %(default)s)"
    )
    group.add_argument(
        "--kernel", choices=("auto", *KERNELS), help="who does the arithmetic (default: auto)"
    )
    group.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        help="on a GPU with 4096 clusters or more, time several ways to cut the work at first "
        "use; $XDG_CACHE_HOME/streamkm remembers the fastest (default: yes)",
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
        add_checkpoint_every(group)
        group.add_argument(
            "--keep-checkpoints",
            metavar="N",
            type=int,
            default=2,
            help="newest to keep (default: %(default)s)",
        )
        group.add_argument(
            "--probe", action=argparse.BooleanOptionalAction, default=False, help=PROBE_HELP
        )


def add_checkpoint_every(parser: argparse._ActionsContainer) -> None:
    """How often what was computed is made durable."""
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


# ---- options that there are not ---------------------------------------------


def check_options(
    argv: Sequence[str],
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
) -> None:
    """Refuse an option that the command does not have, and name the one that was meant.

    argparse would name none, and complain first of what it misses for want of that option.
    """
    command = ""
    for word in argv:
        name = word.partition("=")[0]
        if word in ("--", "-h", "--help"):
            return
        # (argparse takes what has a space in it for no option, and what begins with one dash
        # for the value of one, perhaps.)
        if command and name.startswith("--") and " " not in word:
            if name not in _options_of(commands[command]):
                meant = _meant(name, commands, command)
                commands[command].error(f"{command} has no option {name}{meant}")
        elif not command and word in commands:
            command = word
        elif not command and word.startswith("-") and name not in _options_of(parser):
            parser.error(f"{name} before the command: options follow it, as in fit x.npy --k 8")


def _meant(name: str, commands: Mapping[str, argparse.ArgumentParser], command: str) -> str:
    """What may have been meant by `name`, if anything is like it."""
    having = [other for other in commands if name in _options_of(commands[other])]
    if having:
        return f", {' and '.join(having)} {'have' if len(having) > 1 else 'has'}"
    known = sorted(_options_of(commands[command]))
    near = [option for option in known if option.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of `parser`, from its help: argparse tells them nowhere else."""
    text = re.sub("\x1b\\[[0-9;]*m", "", parser.format_help())  # Python 3.14 has colours in it.
    heads = re.findall("^  (-.*?)(?:  |$)", text, re.MULTILINE)
    return {option for head in heads for option in re.findall("(?<![\\w-])--?[a-z][a-z-]*", head)}
