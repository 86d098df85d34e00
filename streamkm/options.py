"""Makes the options of the command line from the settings and the table of formats.

A setting is declared once, as a field of a class in `streamkm.config`. An option of a format is
declared once, in `streamkm.sources.formats`. Only the options that belong to a command itself
(``--out``, ``--resume``, ``--weights``) are written out here and in `streamkm.cli`.
"""

from __future__ import annotations

import argparse
import functools
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import ConfigError
from streamkm.files import expanded
from streamkm.settings import setting_of, settings_of, whole
from streamkm.sources.formats import source_options, suffixes
from streamkm.sources.options import OF_ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import AbstractContextManager

    from streamkm.settings import Setting
    from streamkm.sources import Source, Weights

__all__ = [
    "DRY_RUN_HELP",
    "WEIGHTS_HELP",
    "add_execution_options",
    "add_fit_options",
    "add_labelling_options",
    "add_nan",
    "add_predict_options",
    "add_report_options",
    "add_source",
    "add_sweep_options",
    "configured",
    "open_as_in",
    "open_source_of",
    "open_weights_of",
    "parsed_by",
    "settings_for",
    "source_keywords",
    "take_over",
]

DRY_RUN_HELP = (
    "write nothing; print what the run will do and need, how long it will take, and what speaks "
    "against it"
)
WEIGHTS_HELP = (
    "how much each row counts: N numbers in a .npy file or a Zarr array (default: every row "
    "counts 1)"
)

#: Settings that a sweep has in another form, or not at all: it varies K.
NOT_SWEPT = ("k", "seed", "from_run", "half_life", "max_size", "min_size")

C = TypeVar("C")


# ---- sources -----------------------------------------------------------------


def add_source(
    parser: argparse.ArgumentParser,
    metavar: str = "SOURCE",
    or_else: str = "",
    *,
    needed: bool = True,
    without: Collection[str] = (),
) -> None:
    """Add the location of an array and the options of every format, but for those `without`.

    `or_else` is a phrase for the help that says what else the location may be.
    """
    parser.add_argument(
        "source",
        metavar=metavar,
        nargs=None if needed else "?",
        help=f"{or_else}a file or folder ({' '.join(suffixes())}), an array in a Zarr group "
        "(store.zarr/group/array), a raw file with --dtype and --features, a folder or glob of "
        "shards, a list of files (@files.txt, one path a line), or an address (s3://, gs://, "
        "az://, https://); the last axis is "
        "features, all others are rows",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in source_options():
        if not option.has_flag or option.name in without:
            continue
        if option.heading not in groups:
            groups[option.heading] = parser.add_argument_group(option.heading)
        if option.is_switch:
            groups[option.heading].add_argument(
                option.flag, dest=option.name, action="store_true", help=option.help
            )
            continue
        groups[option.heading].add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            type=parsed_by(option.parse),
            action="append" if option.is_repeatable else "store",
            help=option.help,
        )


def source_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of formats as keywords of `streamkm.sources.open_source`; None if not given."""
    flags = [option.name for option in source_options() if option.has_flag]
    return {name: getattr(arguments, name, None) for name in flags}


def open_source_of(arguments: argparse.Namespace) -> Source:
    """The array that the arguments of a command name."""
    from streamkm.sources import open_source

    # Values that a file's attributes mark as no data are left out like NaN.
    marked = getattr(arguments, "marked", ())
    fill_is_nan = marked or getattr(arguments, "nan", None) == "drop"
    return open_source(arguments.source, **source_keywords(arguments), fill_is_nan=fill_is_nan)


def open_as_in(run: dict[str, Any], arguments: argparse.Namespace) -> Source:
    """The source, with stored values read as in `run` where no option says otherwise."""
    from streamkm.runs.storage.run_folder import reading_of

    reading = reading_of(run)
    arguments.marked = () if arguments.nodata else reading["marked"]
    for name in ("nodata", "apply_scale", "nan"):
        if not getattr(arguments, name):
            setattr(arguments, name, reading[name])
    return open_source_of(arguments)


def take_over(arguments: argparse.Namespace) -> None:
    """Fill in what is not given as it was in the run that a fit goes on from, if it does."""
    from streamkm.runs.storage.run_folder import read_config

    if arguments.from_run is None:
        return
    settings = read_config(expanded(arguments.from_run))["fit"]
    for name in ("k", "metric", "scale"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, settings[name])


def open_weights_of(
    arguments: argparse.Namespace, source: Source
) -> AbstractContextManager[Weights | None]:
    """The weights that ``--weights`` names, closed at the end of a ``with`` block; or None."""
    from streamkm.sources import open_weights

    if arguments.weights is None:
        return nullcontext()
    choice = source.spec.choice
    n_rows = source.spec.n_rows if choice is None else choice.n_whole
    return closing(open_weights(arguments.weights, n_rows, choice))


# ---- settings ----------------------------------------------------------------


def settings_for(command: str, *configs: type[Any]) -> list[Setting]:
    """The settings in `configs`, classes of settings, that are options of `command`."""
    return [each for config in configs for each in settings_of(config) if each.is_of(command)]


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `fit` alone has, its settings among them."""
    settings = settings_for("fit", FitConfig)
    _add_settings(parser, (each for each in settings if each.is_required))
    add = parser.add_argument
    add(
        "--out",
        metavar="RUN",
        type=expanded,
        required=True,
        help="run folder to write; it must not exist, unless --resume is given",
    )
    add(
        "--resume",
        action="store_true",
        help="continue RUN from its newest checkpoint, or start it if there is none",
    )
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    add(
        "--config",
        metavar="TOML",
        type=expanded,
        help="TOML file to read options from; options on the command line win",
    )
    group = parser.add_argument_group("what to compute (decides the result)")
    _add_settings(group, (each for each in settings if not each.is_required))


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `sweep` alone has, and the settings of all its fits."""
    from streamkm.runs.sweeping.variants import parse_ks

    add = parser.add_argument
    add(
        "-k",
        "--k",
        dest="ks",
        metavar="K",
        nargs="+",
        required=True,
        type=parsed_by(parse_ks),
        help="numbers of clusters; 8:64:8 stands for 8, 16 and so on to 64, 8:1024:x2 for 8, 16, "
        "32 and so on to 1024",
    )
    add(
        "--seeds",
        metavar="N",
        nargs="+",
        default=[0],
        type=parsed_by(int, setting_of(FitConfig, "seed").rule.text),
        help="fit every K with each of these seeds, and say how well the clusters of one K agree "
        "(default: 0)",
    )
    add(
        "--out",
        metavar="DIR",
        type=expanded,
        required=True,
        help="folder to write, with a run folder for each fit; it must not exist, unless --resume "
        "is given",
    )
    add(
        "--resume",
        action="store_true",
        help="continue every fit in DIR from its newest checkpoint, and start those that are new",
    )
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    add("--weights", metavar="LOCATION", type=expanded, help=WEIGHTS_HELP)
    add(
        "--all-rows",
        action="store_true",
        help="take every figure of all rows, with one more read of an array that does not fit in "
        "memory (default: there, figures that need each row once more are those of a sample)",
    )
    several = ("scale", "metric")
    settings = [each for each in settings_for("fit", FitConfig) if each.name not in NOT_SWEPT]
    group = parser.add_argument_group("what to compute: one or several, every fit with each")
    _add_settings(group, (each for each in settings if each.name in several), nargs="+")
    group = parser.add_argument_group("what to compute (the same for every fit)")
    _add_settings(group, (each for each in settings if each.name not in several))


def add_execution_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the settings of how `command` is carried out."""
    group = parser.add_argument_group(
        "how to compute (changes the last bits of the result at most)"
    )
    _add_settings(group, settings_for(command, ExecutionConfig))


def add_nan(parser: argparse.ArgumentParser) -> None:
    """Add ``--nan``, by default as in the run."""
    declared = setting_of(FitConfig, "nan")
    text = "rows with NaN or infinity: error stops, drop leaves them out, with the label -1"
    _add_settings(parser, [replace(declared, text=text, shown="as in the run")])


def add_labelling_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--nan`` and ``--search``: how rows are labelled."""
    add_nan(parser)
    parser.add_argument(
        "--search",
        choices=("exact", "fast"),
        default="exact",
        help="exact compares each row with every centroid; fast, for thousands of them, with those "
        "around one branch, on the CPU; evaluate says how many rows find their nearest "
        "(default: exact)",
    )


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `predict` alone has: its outputs, ``--resume`` and ``--dry-run``."""
    parser.add_argument(
        "--labels",
        metavar="OUT",
        type=expanded,
        required=True,
        help="where to write the label of each row, a .npy or .zarr; or a .parquet of labels, "
        "distances and the ids of --id-column; or store.zarr/NAME, a map in the source's shape; or "
        "a .h5ad, a copy of the source with the labels in its obs",
    )
    parser.add_argument(
        "--distances",
        metavar="OUT",
        type=expanded,
        help="where to write the Euclidean distance of each row to its centroid, a .npy, .zarr "
        "or .parquet",
    )
    parser.add_argument(
        "--second",
        metavar="OUT",
        type=expanded,
        help="where to write the distance of each row to its second nearest centroid; less the "
        "distance to its centroid that is its margin",
    )
    parser.add_argument(
        "--nearest",
        metavar="M",
        type=parsed_by(int, whole(1).text),
        help="write the labels, and distances, of the M nearest centroids of each row, nearest "
        "first: M columns, also of 1 (default: a single number a row)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue unfinished outputs, or start them if there are none",
    )
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`: the run, its rows, where it is written, how rows are shown."""
    parser.add_argument("run", metavar="RUN", type=expanded, help="folder of a run, or of a sweep")
    # Its `--rows` says whether rows are read at all.
    what = "the rows to read; by default those of the fit; "
    add_source(parser, or_else=what, needed=False, without=[o.name for o in OF_ALL])
    parser.add_argument(
        "-o",
        "--out",
        metavar="HTML",
        type=expanded,
        default=Path("report.html"),
        help="file to write; an older report is replaced, nothing else (default: report.html)",
    )
    parser.add_argument(
        "--rows",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the rows once, for the spread of clusters and for examples (default: yes)",
    )
    parser.add_argument(
        "--image",
        metavar="HxW[x3]",
        help="show centroids and rows as images of this shape, such as 28x28 or 8x8x3",
    )
    parser.add_argument(
        "--features-from",
        metavar="FILE",
        type=expanded,
        help="names of the features, a text file with one a line (default: those of the data)",
    )
    group = parser.add_argument_group(
        "how rows are shown",
        "FROM is a text file with a line for each row, a .npy array, or a column of the source as "
        "column:NAME",
    )
    for flag, text in (
        ("--ids", "ids of the rows (default: the column of --id-column, else row numbers)"),
        ("--texts", "texts of the rows"),
        (
            "--image-files",
            "image files of the rows; relative names begin at the file that has them",
        ),
    ):
        group.add_argument(flag, metavar="FROM", help=text)


def configured(config: type[C], arguments: argparse.Namespace) -> C:
    """An instance of `config` with the options that were given, and defaults for the rest."""
    given = {each.name: getattr(arguments, each.name, None) for each in settings_of(config)}
    return config(**{name: value for name, value in given.items() if value is not None})


def _add_settings(
    parser: argparse._ActionsContainer, settings: Iterable[Setting], nargs: str | None = None
) -> None:
    # argparse learns no default, so that `configured` can tell what was given.
    for each in settings:
        names = [each.short, each.flag] if each.short else [each.flag]
        if each.parse is None:
            action = argparse.BooleanOptionalAction
            parser.add_argument(*names, action=action, help=each.help)
        else:
            parser.add_argument(
                *names,
                dest=each.name,
                type=parsed_by(each.parse, each.rule.text),
                choices=each.rule.choices or None,
                metavar=each.metavar,
                nargs=nargs,
                help=each.help,
            )


def parsed_by(parse: Callable[[str], Any], rule: str = "") -> Callable[[str], Any]:
    """`parse`, with a message that argparse shows instead of its own, which says less."""

    @functools.wraps(parse, updated=())
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            kind = rule or ("a whole number" if parse is int else "a number")
            raise argparse.ArgumentTypeError(f"must be {kind}, not {text!r}") from None

    return parsed
