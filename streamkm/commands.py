"""What each command runs, from its arguments; `partition` has a file of its own.

A command imports torch only after it has checked everything that can be refused without torch.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.files import expanded
from streamkm.options import (
    configured,
    open_as_in,
    open_source_of,
    open_weights_of,
    source_keywords,
    take_over,
)
from streamkm.starting import of_first, processes

if TYPE_CHECKING:
    import argparse

    from streamkm.runs.dry_run.report import DryRun

__all__ = ["run_evaluate", "run_fit", "run_info", "run_predict", "run_report", "run_sweep"]


def run_fit(arguments: argparse.Namespace) -> None:
    """Cluster an array."""
    from streamkm.runs.planning.checks import check_fit, check_outside
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.run_folder import check_run_is_free

    take_over(arguments)
    config = configured(FitConfig, arguments)
    execution = configured(ExecutionConfig, arguments)
    with (
        StopRequest() as stop_request,
        processes(execution) as (execution, shared),
        closing(open_source_of(arguments)) as source,
    ):
        control: dict[str, Any] = {"resume": arguments.resume, "stop_request": stop_request}
        control |= shared
        check_fit(source.spec, config, source.name)
        check_outside(source, run_dir=arguments.out)
        is_first = not shared or shared["world"].is_first
        if arguments.dry_run:
            if is_first:
                with open_weights_of(arguments, source) as weights:
                    from streamkm.runs.dry_run.fit import dry_run

                    job = (source, config, execution, arguments.out)
                    _print_report(dry_run(*job, **control, weights=weights))
            if shared:  # The others wait, so that they cannot end as lost.
                shared["world"].meet()
            return
        if is_first:
            check_run_is_free(arguments.out, resume=arguments.resume)

        with open_weights_of(arguments, source) as weights:
            from streamkm.runs.fit import fit

            fit(source, config, execution, arguments.out, **control, weights=weights)


def run_sweep(arguments: argparse.Namespace) -> None:
    """Fit many K with one read."""
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.sweeping.record import SweepFolder
    from streamkm.runs.sweeping.variants import check_variants, spaces_of

    ks, seeds = [k for some in arguments.ks for k in some], arguments.seeds
    arguments.k = min(ks)
    spaces = {"scales": arguments.scale or (), "metrics": arguments.metric or ()}
    arguments.scale = arguments.metric = None
    base = configured(FitConfig, arguments)
    spaces_of(base, **spaces)  # Refused before torch is imported.
    with (
        StopRequest() as stop_request,
        processes(configured(ExecutionConfig, arguments)) as (execution, shared),
        closing(open_source_of(arguments)) as source,
    ):
        check_variants(base, ks, seeds, source.spec.n_rows, source.name)
        control: dict[str, Any] = {"resume": arguments.resume, "stop_request": stop_request}
        control |= {**spaces, "all_rows": arguments.all_rows}
        is_first = not shared or shared["world"].is_first
        if is_first and not arguments.dry_run:
            SweepFolder.check_is_free(arguments.out, resume=arguments.resume)
        with open_weights_of(arguments, source) as weights:
            control["weights"] = weights
            if arguments.dry_run:
                if is_first:
                    from streamkm.runs.dry_run.sweep import dry_sweep

                    _print_report(
                        dry_sweep(source, base, ks, seeds, execution, arguments.out, **control)
                    )
                if shared:
                    shared["world"].meet()
                return
            from streamkm.runs.sweeping.sweep import sweep

            control |= shared
            found = sweep(source, base, ks, seeds, execution, arguments.out, **control)
        if is_first:
            print(found)


def _print_report(report: DryRun) -> None:
    print(report)
    if report.errors:
        raise report.errors[0]


def run_predict(arguments: argparse.Namespace) -> None:
    """Write the label of every row."""
    from streamkm.runs.planning.checks import check_outside
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.output_records import check_free, may_be_finished
    from streamkm.runs.storage.run_folder import read_config

    outputs = {name: getattr(arguments, name) for name in ("labels", "distances", "second")}
    targets = [path for path in outputs.values() if path is not None]
    names = ("nearest", "nan", "search", "resume")
    options = {name: getattr(arguments, name) for name in names} | outputs
    with (
        StopRequest() as stop_request,
        processes(configured(ExecutionConfig, arguments)) as (execution, shared),
        ExitStack() as stack,
    ):
        run = of_first(shared, partial(read_config, arguments.run))
        # Whether an output is finished shows only once the source is open: predict looks then.
        is_checked_later = arguments.resume and may_be_finished(arguments.run, targets)
        is_first = not shared or shared["world"].is_first
        if is_first and not (arguments.dry_run or is_checked_later):
            check_free(arguments.run, targets, resume=arguments.resume)
        source = stack.enter_context(closing(open_as_in(run, arguments)))
        options["stop_request"] = stop_request
        check_outside(source, **outputs)
        if arguments.dry_run:
            from streamkm.runs.dry_run.predict import dry_predict

            if is_first:
                _print_report(dry_predict(arguments.run, source, execution, **options))
            if shared:
                shared["world"].meet()
            return
        from streamkm.runs.predict import predict

        predict(arguments.run, source, execution, **options, **shared)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Measure the clusters of a run on an array."""
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.run_folder import read_config

    reads = partial(read_config, arguments.run)
    with (
        StopRequest() as stop_request,
        processes(configured(ExecutionConfig, arguments)) as (execution, shared),
        closing(open_as_in(of_first(shared, reads), arguments)) as source,
        open_weights_of(arguments, source) as weights,
    ):
        from streamkm.runs.evaluate import evaluate

        evaluation = evaluate(
            arguments.run,
            source,
            execution,
            nan=arguments.nan,
            search=arguments.search,
            stop_request=stop_request,
            weights=weights,
            **shared,
        )
    if not shared or shared["world"].is_first:
        print(json.dumps(evaluation.as_dict()) if arguments.json else evaluation)


def run_info(arguments: argparse.Namespace) -> None:
    """Describe an array, a run, a sweep or a partition."""
    from streamkm.runs.info import describe_run, describe_source
    from streamkm.runs.partitioning.record import PARTITION, describe_partition
    from streamkm.runs.storage.run_folder import CONFIG, looks_like_a_run
    from streamkm.runs.sweeping.record import SWEEP
    from streamkm.runs.sweeping.table import describe_sweep

    path = expanded(arguments.source)
    if (path / SWEEP).exists():
        print(describe_sweep(path))
    elif (path / PARTITION).exists():
        print(describe_partition(path))
    elif (path / CONFIG).exists() or looks_like_a_run(path):
        print(describe_run(path))
    else:
        with closing(open_source_of(arguments)) as source:
            print(describe_source(source))


def run_report(arguments: argparse.Namespace) -> None:
    """Write an HTML page about a run or a sweep."""
    from streamkm.reports import Look, any_report, check_is_free

    check_is_free(arguments.out)
    shows = ("rows", "image", "features_from", "ids", "texts", "image_files")
    shown = {name: getattr(arguments, name) for name in shows}
    look = Look(**shown, sample_weight=arguments.weights)
    where = (arguments.run, arguments.source, source_keywords(arguments))
    report = any_report(*where, look, configured(ExecutionConfig, arguments))
    print(f"written: {report.save(arguments.out)}")
