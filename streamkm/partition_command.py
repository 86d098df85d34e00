"""The command `partition`: its options, and what it runs."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from streamkm.config import ExecutionConfig
from streamkm.files import expanded
from streamkm.options import add_nan, add_source, configured, open_as_in, parsed_by
from streamkm.runs.partitioning.grouping import SORTS, Grouping, parse_format, parse_only
from streamkm.sources.options import OF_ALL
from streamkm.starting import of_first, processes

if TYPE_CHECKING:
    import argparse

__all__ = ["PARTITION_SUMMARY", "add_partition_options", "run_partition"]

PARTITION_SUMMARY = "Group the rows of an array by cluster on disk."


def add_partition_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `partition`, but for those of how it is carried out."""
    add = parser.add_argument
    add("run", metavar="RUN", type=expanded, help="folder of a finished run")
    # Its `--rows` is a format, and it groups all rows.
    add_source(parser, without=[option.name for option in OF_ALL])
    add_nan(parser)
    add(
        "--out",
        metavar="DIR",
        type=expanded,
        required=True,
        help="folder to write; it must not exist, unless --resume is given",
    )
    add(
        "--rows",
        metavar="FORMAT",
        type=parsed_by(parse_format),
        help="write the rows themselves too, in this order: npy (DIR/rows.npy), zarr "
        "(DIR/rows.zarr) or parquet (DIR/rows/centroid=17/part-0.parquet)",
    )
    add(
        "--labels",
        metavar="FILE",
        type=expanded,
        help="labels of the rows, which predict has written (.npy, .zarr or .parquet); by default "
        "they are found by the model",
    )
    add(
        "--only",
        metavar="K,K",
        type=parsed_by(parse_only),
        help="write these clusters alone, such as 17,23",
    )
    add(
        "--sort",
        choices=list(SORTS),
        default=SORTS[0],
        help="what the rows of a cluster are sorted by: their number, or their distance to the "
        "centroid (default: row)",
    )
    add(
        "--resume",
        action="store_true",
        help="continue DIR where it was stopped, or start it if there is nothing",
    )
    add(
        "--dry-run",
        action="store_true",
        help="write nothing; print the memory, the passes and the disk space that it will need, "
        "and what speaks against it",
    )


def run_partition(arguments: argparse.Namespace) -> None:
    """Run `partition` as its arguments say."""
    from streamkm.runs.partitioning.record import PartitionFolder
    from streamkm.runs.planning.checks import check_outside
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.run_folder import read_config

    grouping = Grouping(
        arguments.rows, arguments.labels, arguments.only, arguments.sort, arguments.nan
    )
    with (
        StopRequest() as stop_request,
        processes(configured(ExecutionConfig, arguments)) as (execution, shared),
    ):
        is_first = not shared or shared["world"].is_first
        run = of_first(shared, partial(read_config, arguments.run))
        if is_first and not arguments.dry_run:
            PartitionFolder.check_is_free(arguments.out, resume=arguments.resume)
        with closing(open_as_in(run, arguments)) as source:
            check_outside(source, out=arguments.out)
            job = (arguments.run, source, execution, arguments.out, grouping)
            if arguments.dry_run:
                from streamkm.runs.dry_run.partition import dry_partition

                if is_first:
                    report = dry_partition(*job, resume=arguments.resume, stop_request=stop_request)
                    print(report)
                    if report.errors:
                        raise report.errors[0]
                if shared:
                    shared["world"].meet()
                return
            from streamkm.runs.partitioning.partition import partition

            partition(*job, resume=arguments.resume, stop_request=stop_request, **shared)
