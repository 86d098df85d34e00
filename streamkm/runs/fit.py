"""A fit, from the source to the model, in a run folder that survives any interruption."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.devices import resolve_device
from streamkm.distributed.world import ALONE
from streamkm.errors import ConfigError, Option, RunError, StorageError
from streamkm.files import file_sha256
from streamkm.runs.engine.attempt import Attempt
from streamkm.runs.planning.checks import check_fit, check_outside
from streamkm.runs.planning.earlier import Earlier
from streamkm.runs.planning.fit_plan import FitPlan
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.checkpoint import Checkpointer, NoCheckpoints
from streamkm.runs.storage.model import Model, load_model
from streamkm.runs.storage.model_file import DamagedModelError
from streamkm.runs.storage.run_folder import RunFolder, feature_names
from streamkm.runs.storage.shared_path import check_one_run
from streamkm.sources.names import in_order
from streamkm.tables import ALGORITHMS

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.engine.listener import Listener
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.seat import Seat

__all__ = ["as_begun", "finished_model", "fit", "plan_fit", "run_record", "seed"]

logger = logging.getLogger("streamkm")


def fit(
    source: Source,
    config: FitConfig,
    execution: ExecutionConfig,
    run_dir: Path | None,
    *,
    resume: bool,
    stop_request: StopRequest,
    given_KD: np.ndarray | None = None,
    quiet: bool = False,
    weights: Weights | None = None,
    listener: Listener | None = None,
    world: World = ALONE,
    seat: Seat | None = None,
) -> Model:
    """Cluster `source`, write the run folder `run_dir` if one is given, and return the model.

    Parameters
    ----------
    source : Source
        N rows by D features.
    config, execution : FitConfig, ExecutionConfig
        What to compute, and how.
    run_dir : Path or None
        Must not exist unless `resume` is true. With None nothing is written, and an
        interrupted fit leaves nothing.
    resume : bool
        Go on from the newest valid checkpoint in `run_dir`, or start.
    stop_request : StopRequest
        Asked after every batch.
    given_KD : ndarray of shape (k, D), optional
        The first centroids, in the space of the input, if ``config.init`` is ``given``.
    quiet : bool
        Say nothing on stderr.
    weights : Weights, optional
        How much each row counts, from `open_weights`. A row of weight 0 leaves no trace; one
        of weight 2 counts as two rows.
    listener : Listener, optional
        Hears of every step and pass.
    world : World, optional
        The processes that share the fit. All call `fit` with the same arguments; the first alone
        uses `run_dir`, and each returns the model.
    seat : Seat, optional
        Where the rows come from if other fits share the reads. On several processes those fits
        must have the turn in the same order in all.

    Raises
    ------
    Interrupted
        After `stop_request`, with a checkpoint saved if there is a run folder.
    InputError
        If the arguments, the data or the run folder cannot be used.
    AllocationError
        If the machine or the GPU refuses memory; the checkpoints are kept.
    DeviceLostError
        If the GPU fails; the checkpoints are kept.
    StorageError
        If the disk refuses the result, or the checkpoint that `stop_request` asks for. An
        earlier checkpoint that it refuses costs a warning; the run tries again at the next.
    """
    check_outside(source, run_dir=run_dir)
    if resume and run_dir is not None:
        check_one_run(run_dir, world)
        source = as_begun(source, run_dir, world)
    if config.from_run is not None:
        source = as_begun(source, Path(config.from_run), world)
    plan = plan_fit(source, config, execution, given_KD, weights, world)
    # It reads rows for a fingerprint of the data.
    record = run_record(plan, given_KD) if run_dir is not None or world.size > 1 else {}
    if world.size > 1:
        world.agree({**record["fit"], **record["data"]})
    if run_dir is None or not world.is_first:
        # What is in the run folder, the first process alone has looked up.
        if run_dir is not None:
            world.meet()
            if world.gather(None)[0]:
                return load_model(run_dir, world)
        with Progress(quiet=quiet or not world.is_first) as progress:
            attempt = Attempt(plan, NoCheckpoints(), progress, stop_request, listener, world, seat)
            with memory_told(attempt.doing, resumable=run_dir is not None):
                return attempt.run()
    with RunFolder(run_dir, record, resume=resume) as folder:
        finished = finished_model(folder)
        world.meet()
        world.gather(finished is not None)
        if finished is not None:
            if world.size > 1:
                load_model(folder.path, world)
            return _say_finished(finished, folder, quiet=quiet)
        checkpoints = Checkpointer(
            folder.checkpoints, execution.checkpoint_every, execution.keep_checkpoints
        )
        with Progress(folder.metrics, quiet=quiet) as progress, closing(checkpoints):
            attempt = Attempt(plan, checkpoints, progress, stop_request, listener, world, seat)
            with memory_told(attempt.doing, resumable=True):
                model = attempt.run()
            checkpoints.conclude()
            _write(model, folder)
            progress.say(f"written: {folder.centroids} and {folder.model}")
    return model


def as_begun(source: Source, run_dir: Path, world: World = ALONE) -> Source:
    """`source` with its features in the order in which the run in `run_dir` began, if there is one.

    The first process of `world` looks it up for all.

    Raises
    ------
    SourceError
        If the run's features have other names.
    """
    names = world.gather(feature_names(run_dir) if world.is_first else None)[0]
    return in_order(source, names, f"the run {run_dir}")


def plan_fit(
    source: Source,
    config: FitConfig,
    execution: ExecutionConfig,
    given_KD: np.ndarray | None = None,
    weights: Weights | None = None,
    world: World = ALONE,
    *,
    trains: bool = True,
) -> FitPlan:
    """The fit plan: all that `fit` decides before it reads a row.

    Parameters and errors are those of `fit`; `trains` is of `FitPlan.make`.
    """
    spec = source.spec
    check_fit(spec, config, source.name)
    if weights is not None and config.k > weights.n_positive and config.from_run is None:
        raise ConfigError(
            "k must be at most the number of rows of positive weight: "
            f"{weights.name} has {weights.n_positive:,}, k is {config.k:,}"
        )
    earlier = None if config.from_run is None else _earlier(Path(config.from_run), world)
    if earlier is not None:
        earlier.check(config, spec, source.name)
    resolved = config.resolved(spec.n_rows, spec.n_features)
    devices = ALGORITHMS[config.algorithm].devices
    device = resolve_device(execution.device, devices, f"algorithm {config.algorithm}")
    n_here = world.hosts.count(world.host)
    return FitPlan.make(
        source, resolved, execution, device, given_KD, weights, n_here, earlier, trains=trains
    )


def run_record(plan: FitPlan, given_KD: np.ndarray | None = None) -> dict[str, Any]:
    """The content of config.json: the data and the settings of a run."""
    source, weights, spec = plan.source, plan.weights, plan.source.spec
    settings = plan.config.as_dict()
    init = plan.config.init
    if init.endswith(".npy"):
        # By content: the same file may get another path, and the path another content.
        settings["init"] = f".npy file of sha256 {file_sha256(Path(init))[:12]}"
    if plan.earlier is not None:
        # By content, as above: a run may be moved.
        settings["from_run"] = f"model of sha256 {_digest(plan.earlier)}"
    if given_KD is not None:
        # In float64: the dtype that they were given in makes no difference.
        wide_KD = given_KD.astype(np.float64)
        settings["init"] = f"array of sha256 {sha256(wide_KD.tobytes()).hexdigest()[:12]}"
    data = {
        # Before the dtype and the fingerprint, which change with them: an error names the first.
        "nodata": list(spec.nodata) or None,
        "scaled": spec.is_scaled or None,
        "chosen": None if spec.choice is None else str(spec.choice),
        "shape": [spec.n_rows, spec.n_features],
        "dtype": spec.dtype,
        "block_rows": spec.block_rows,
        "fingerprint": source.fingerprint(),
        "weights": None if weights is None else weights.fingerprint,
    }
    # Beside the data, because runs of older versions have none to compare.
    names = {"feature_names": list(spec.feature_names)} if spec.feature_names else {}
    marked = {"marked": list(spec.marked)} if spec.marked else {}
    choice = {} if spec.choice is None else {"choice": spec.choice.options()}
    return {
        "source": source.name,
        "fit": settings,
        "data": data,
        **names,
        **marked,
        **choice,
        "execution": asdict(plan.execution),
    }


def _earlier(run_dir: Path, world: World) -> Earlier:
    """What the finished run in `run_dir` leaves to go on from; a collective."""
    model = load_model(run_dir, world)
    return Earlier(
        model.centroids_KD, model.sums_KD, model.counts_K, model.weights_K, model.scaling,
        model.settings["metric"], model.settings["scale"], model.settings["algorithm"],
    )  # fmt: skip


def _digest(earlier: Earlier) -> str:
    """Tells runs that ended with other centroids, sums or counts apart."""
    tensors = (earlier.centroids_KD, earlier.sums_KD, earlier.counts_K, earlier.weights_K)
    return sha256(b"".join(each.cpu().numpy().tobytes() for each in tensors)).hexdigest()[:12]


def finished_model(folder: RunFolder) -> Model | None:
    """The model of a finished run; None if it is missing, or damaged and can be made again."""
    if not folder.is_complete:
        return None
    try:
        return load_model(folder.path)
    except DamagedModelError as error:
        if not folder.has_checkpoints():
            raise RunError(
                f"{error.what}, and no checkpoint is there to make it from again; restore it from "
                "a copy, or start anew with another ",
                Option("run_dir"),
            ) from error
        logger.warning("%s; it is made again from the newest checkpoint", error.what)
        return None


def _say_finished(model: Model, folder: RunFolder, *, quiet: bool) -> Model:
    """Mend centroids.npy if it is damaged or missing, and say that the run is finished."""
    mended = model.mend_centroids(folder)
    with Progress(quiet=quiet) as progress:
        if mended:
            progress.say(
                f"{folder.centroids} was damaged or missing: written again from {folder.model}"
            )
        progress.say(f"{folder.path}: this run is finished, nothing is left to do")
    return model


def _write(model: Model, folder: RunFolder) -> None:
    """Write the result; unlike a checkpoint it cannot wait, so a refusal ends the run."""
    try:
        model.save(folder)
    except OSError as error:
        raise StorageError(
            f"{folder.path}: the result cannot be written ({error}); every checkpoint that was "
            "saved is intact: free space, or mend what keeps the disk from being written, then "
            "repeat with ",
            Option("resume", value=True),
        ) from error


def seed(
    source: Source,
    config: FitConfig,
    execution: ExecutionConfig,
    *,
    given_KD: np.ndarray | None = None,
    weights: Weights | None = None,
    quiet: bool = False,
) -> Model:
    """The model that `fit` would begin from: the first centroids, with no row counted.

    Parameters are those of `fit`.
    """
    plan = plan_fit(source, config, execution, given_KD, weights, trains=False)
    with Progress(quiet=quiet) as progress:
        return Attempt.of_seeding_alone(plan, progress).seed()
