"""The settings of a run: one field each, in frozen classes that check their values.

There are two classes, because resuming treats their settings differently. `FitConfig` decides the
result, so a run resumes only under the same values. `ExecutionConfig` decides how fast the result
is reached and in how much memory, and may change from one attempt to the next.

A setting is one field: its option, its line in the help, its key in ``--config`` and its check
are made from the field (see `streamkm.settings`). Rules between several settings stand in
``__post_init__``. The names of algorithms and kernels, and the defaults of an algorithm, come from
`streamkm.tables`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from streamkm.batch_rows import (
    MAX_BATCH_ROWS,
    MIN_BATCH_ROWS,
    default_batch_rows,
    default_branches,
    largest_batch_rows,
)
from streamkm.bounds import SIZE, check_bounds, parse_size
from streamkm.cadence import Cadence
from streamkm.errors import ConfigError, Option
from streamkm.settings import (
    EVERY_COMMAND,
    Rule,
    config_class,
    finite,
    matching,
    one_of,
    setting,
    settings_of,
    whole,
)
from streamkm.tables import ALGORITHMS, KERNELS
from streamkm.text import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.tables import AlgorithmEntry

__all__ = [
    "INITS",
    "Cadence",
    "ExecutionConfig",
    "FitConfig",
    "ResolvedFitConfig",
    "default_batch_rows",
    "default_branches",
    "largest_batch_rows",
]

#: Threads that read, at most: more would only wait for each other.
MOST_READ_THREADS = 256

#: The commands that several processes can share.
SHARED = ("fit", "sweep", "predict", "evaluate", "partition")

#: The names that ``init`` takes, beside the path of a file.
INITS = ("auto", "random", "k-means++", "k-means||")


def _names(has: Callable[[AlgorithmEntry], bool]) -> str:
    """The names of the algorithms for which `has` is true, as a phrase."""
    return " or ".join(name for name, entry in ALGORITHMS.items() if has(entry))


def _by_algorithm(default: Callable[[AlgorithmEntry], str]) -> str:
    """A default that depends on the algorithm, as the help names it."""
    return ", ".join(f"{default(entry)} for {name}" for name, entry in ALGORITHMS.items())


def _is_file(init: str) -> bool:
    return init.endswith(".npy")


#: The algorithms that take ``max_no_improvement``, ``min_gain`` and ``rate``.
_BATCH_WATCHERS = _names(lambda entry: entry.watches_batches)
_EPOCH_WATCHERS = _names(lambda entry: entry.min_gain is not None)
_RATED = _names(lambda entry: bool(entry.rates))
_BRANCHED = _names(lambda entry: entry.branches)
#: Every rate that some algorithm takes.
_RATES = tuple(dict.fromkeys(rate for entry in ALGORITHMS.values() for rate in entry.rates))


@config_class
class FitConfig:
    """Everything that decides the result of a fit, apart from the data.

    The text of each `setting` documents its field, and ``fit --help`` shows it. None means that
    `resolved` decides, from the algorithm and the shape of the array.
    """

    k: int = setting("number of clusters", short="-k", rule=whole(1))
    algorithm: str = setting(
        "when the centroids move: "
        + ", ".join(f"{name} {entry.summary}" for name, entry in ALGORITHMS.items()),
        default=next(iter(ALGORITHMS)),
        rule=one_of(*ALGORITHMS),
    )
    epochs: int | None = setting(
        "passes over the data, at most",
        default=None,
        shown=_by_algorithm(lambda entry: str(entry.epochs)),
        rule=whole(1),
        metavar="N",
    )
    batch_rows: int | None = setting(
        "rows of a batch, at most",
        default=None,
        shown=f"{MIN_BATCH_ROWS} to {MAX_BATCH_ROWS}, by the array's shape",
        rule=whole(1),
        metavar="N",
    )
    # "given" stands for centroids that a caller in Python passes as an array.
    init: str = setting(
        "where the centroids begin: auto, random and k-means++ look at a sample of the rows, "
        "k-means|| at all of them; or a .npy file of K x D centroids",
        default="auto",
        rule=Rule(
            f"one of {', '.join(INITS)} or the path of a .npy file",
            lambda init: isinstance(init, str) and (init in (*INITS, "given") or _is_file(init)),
        ),
    )
    n_init: int = setting(
        "make N seedings and continue with the one that costs least on rows that none of them saw",
        default=1,
        rule=whole(1),
        metavar="N",
    )
    metric: Literal["euclidean", "cosine"] = setting(
        "distance; cosine gives rows and centroids unit length", default="euclidean"
    )
    scale: Literal["none", "zscore", "minmax", "l2"] = setting(
        "scaling before distances are taken: zscore or minmax of each feature, or rows divided by "
        "their l2 length",
        default="none",
    )
    tol: float | None = setting(
        "stop when the squared shift of the centroids is at most TOL times the mean variance of "
        "the features",
        default=None,
        shown=_by_algorithm(lambda entry: f"{entry.tol:g}" if entry.tol else "off"),
        rule=finite(0),
    )
    max_no_improvement: int | None = setting(
        f"{_BATCH_WATCHERS} only: stop when the smoothed inertia has not improved for STEPS steps",
        default=None,
        shown="never",
        rule=whole(1),
        metavar="STEPS",
    )
    min_gain: float | None = setting(
        f"{_EPOCH_WATCHERS} only: stop when an epoch lowered the inertia by at most SHARE of it; "
        "0 is off",
        default=None,
        shown=next(f"{entry.min_gain:g}" for entry in ALGORITHMS.values() if entry.min_gain),
        rule=finite(0, below=1),
        metavar="SHARE",
    )
    rate: str | None = setting(
        f"{_RATED} only: how many rows a centroid is the mean of: annealed, the latest few at "
        "first and more and more along the run; mean, all so far, as in scikit-learn",
        default=None,
        shown=next(iter(_RATES)),
        rule=one_of(*_RATES),
    )
    branching: str | None = setting(
        f"{_BRANCHED} only: number of branches, or that times the clusters of each, such as 256x64;"
        " a row is compared with the clusters in and around its branch",
        default=None,
        shown="2 sqrt(k) branches",
        rule=matching(r"[1-9]\d*(x[1-9]\d*)?", "a whole number, or two as in 256x64"),
        metavar="BRANCHES[xCLUSTERS]",
    )
    seed: int = setting(
        "decides the order of the rows and every random draw", default=0, rule=whole(0)
    )
    nan: Literal["error", "drop"] = setting(
        "rows with NaN or infinity: error stops, drop leaves them out and counts them",
        default="error",
    )
    closing_pass: bool | None = setting(
        "end with a pass that makes each centroid the mean of its cluster; after "
        f"{_names(lambda entry: not entry.closes)} only if a cluster has no row",
        default=None,
        shown="yes, but not with --from",
    )
    from_run: str | None = setting(
        "go on from the centroids and counts of a finished run, over new rows; its k, metric and "
        "scale are taken over",
        default=None,
        shown="start anew",
        metavar="RUN",
    )
    half_life: int | None = setting(
        "with --from: what came before counts half after this number of new rows",
        default=None,
        shown="never",
        rule=whole(1),
        metavar="ROWS",
    )
    max_size: int | str | None = setting(
        "rows of a cluster at most, or a multiple of the mean size such as 1.2x; kept to the row",
        default=None,
        shown="any",
        rule=SIZE,
        parse=parse_size,
        metavar="ROWS|2x",
    )
    min_size: int | str | None = setting(
        "rows of a cluster at least, or a multiple of the mean size such as 0.5x; kept to the row",
        default=None,
        shown="any",
        rule=SIZE,
        parse=parse_size,
        metavar="ROWS|0.5x",
    )
    precision: Literal["exact", "fast"] = setting(
        "exact: every row gets its true nearest centroid; fast: rows that screening cannot decide "
        "are not scored again",
        default="exact",
    )

    def __post_init__(self) -> None:
        for each in settings_of(FitConfig):
            each.check(getattr(self, each.name))
        fast = None if self.precision == "exact" else self.precision
        check_bounds(self, self._entry, from_run=self.from_run, precision=fast)
        if self.max_no_improvement is not None and not self._entry.watches_batches:
            raise ConfigError(
                Option("max_no_improvement"),
                " watches the inertia of batches and needs ",
                Option("algorithm", _BATCH_WATCHERS),
                f", not {self.algorithm}; use ",
                Option("tol"),
            )
        if self.min_gain is not None and self._entry.min_gain is None:
            raise ConfigError(
                Option("min_gain"),
                " compares epochs of batches and needs ",
                Option("algorithm", _EPOCH_WATCHERS),
                f", not {self.algorithm}; use ",
                Option("tol"),
            )
        if self.rate is not None and self.rate not in self._entry.rates:
            raise ConfigError(
                Option("rate"),
                " is how many rows a centroid remembers and needs ",
                Option("algorithm", _RATED),
                f", not {self.algorithm}; leave it out",
            )
        if self.branching is not None:
            self._check_branching(self.branching)
        if self.n_init > 1 and (self.init == "given" or _is_file(self.init)):
            raise ConfigError(
                Option("n_init", self.n_init),
                " asks for several seedings, and ",
                Option("init", self.init),
                " is one; leave one of them out",
            )
        if self.metric == "cosine" and self.scale in ("zscore", "minmax"):
            raise ConfigError(
                "cosine compares directions from the origin, which ",
                Option("scale", self.scale),
                " moves; use ",
                Option("scale", "none"),
                " with ",
                Option("metric", "cosine"),
            )

    def _check_branching(self, branching: str) -> None:
        """Refuse branches that the algorithm or k does not take."""
        if not self._entry.branches:
            raise ConfigError(
                Option("branching"),
                " is about the branches of a tree and needs ",
                Option("algorithm", _BRANCHED),
                f", not {self.algorithm}; leave it out",
            )
        n_branches, _, each = branching.partition("x")
        made = int(n_branches) * int(each or 1)
        if each and made != self.k:
            raise ConfigError(
                Option("branching", branching),
                f" must multiply to k: it makes {made:,}, k is {self.k:,}; name branches alone, ",
                Option("branching", n_branches),
            )
        if int(n_branches) > self.k:
            raise ConfigError(
                Option("branching", branching),
                f" must be at most k, {self.k:,}: branches are made of clusters; leave it out",
            )

    def resolved(self, n_rows: int, n_features: int) -> ResolvedFitConfig:
        """The same settings with nothing left open, for an array of this shape."""
        # Where centroids move after a pass, only speed depends on the length of a batch.
        default = default_batch_rows if self._entry.watches_batches else largest_batch_rows
        batch_rows = self.batch_rows or default(n_rows, n_features, self.n_branches)
        rates = ("mean",) if self.from_run else self._entry.rates
        return ResolvedFitConfig(
            **self.as_dict()
            | {
                "epochs": self.epochs or self._entry.epochs,
                "batch_rows": min(batch_rows, n_rows),
                "tol": self._entry.tol if self.tol is None else self.tol,
                "min_gain": self._entry.min_gain if self.min_gain is None else self.min_gain,
                "rate": self.rate or next(iter(rates), None),
                "branching": str(self.n_branches or "") or None,
                "closing_pass": self._may_close,
            }
        )

    @property
    def n_branches(self) -> int:
        """Branches of the tree; 0 for an algorithm without."""
        named = (self.branching or "").partition("x")[0]
        return int(named or default_branches(self.k)) if self._entry.branches else 0

    @property
    def is_bounded(self) -> bool:
        """Whether clusters have a size at most, or at least."""
        return self.max_size is not None or self.min_size is not None

    @property
    def normalizes(self) -> bool:
        """Whether rows are divided by their lengths."""
        return self.metric == "cosine" or self.scale == "l2"

    @property
    def closes(self) -> bool:
        """Whether a closing pass follows in any case."""
        return self._may_close and self._entry.closes

    @property
    def _may_close(self) -> bool:
        # It would forget the rows of an earlier run.
        return self.closing_pass is not False and self.from_run is None

    @property
    def _entry(self) -> AlgorithmEntry:
        return ALGORITHMS[self.algorithm]

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, as plain values for JSON."""
        # Not `asdict`, which copies every value: none can be changed.
        return {field.name: getattr(self, field.name) for field in fields(self)}


@config_class
class ResolvedFitConfig(FitConfig):
    """A `FitConfig` whose open settings are decided; only `FitConfig.resolved` makes one."""

    epochs: int
    batch_rows: int
    tol: float

    def __post_init__(self) -> None:
        """Check nothing: the settings were checked while they were open."""


@config_class
class ExecutionConfig:
    """How a run is carried out; only the last bits of the result may depend on it.

    The text of each `setting` documents its field, as in `FitConfig`.
    """

    device: str = setting(
        "auto (CUDA if there is a GPU), cpu, cuda, or one GPU of several, such as cuda:1",
        default="auto",
        rule=matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:I"),
        commands=EVERY_COMMAND,
    )
    kernel: str = setting(
        "who does the arithmetic; auto takes the fastest that runs on the device",
        default="auto",
        rule=one_of("auto", *sorted(KERNELS)),
        commands=EVERY_COMMAND,
    )
    tune: bool = setting(
        "on a GPU, with 4096 clusters or more: time several ways to cut the work at first use; "
        "$XDG_CACHE_HOME/streamkm remembers the fastest",
        default=True,
        commands=EVERY_COMMAND,
    )
    max_host_memory: int | None = setting(
        "limit of the host memory, such as 8GiB; what importing the package takes (about 250 MB) "
        "comes on top; what is left keeps rows for later passes",
        default=None, shown="8GiB, or half the job's if that is less", rule=whole(1),
        parse=parse_bytes, metavar="SIZE", commands=EVERY_COMMAND,
    )  # fmt: skip
    max_device_memory: int | None = setting(
        "limit of a GPU's memory, such as 40GiB; what is left keeps rows for later passes",
        default=None, shown="what is free, less a sixteenth", rule=whole(1),
        parse=parse_bytes, metavar="SIZE", commands=EVERY_COMMAND,
    )  # fmt: skip
    read_threads: int | None = setting(
        "threads that read; 0 reads between batches, which is fastest where starting a thread "
        "takes longer than reading the array",
        default=None, shown="one a core, at most 16; over a network 16", rule=whole(0),
        metavar="N", commands=EVERY_COMMAND,
    )  # fmt: skip
    checkpoint_every: Cadence = setting(
        "time (60s, 5m, 1h) or number of batches between saves",
        default=Cadence(seconds=60),
        parse=Cadence.parse,
        metavar="60s|N",
        commands=("fit", "sweep", "predict", "partition"),
    )
    keep_checkpoints: int = setting(
        "newest checkpoints to keep, at least 2", default=2, rule=whole(2), metavar="N",
        commands=("fit", "sweep"),
    )  # fmt: skip
    probe: bool = setting(
        "measure for about a second how fast reading, copying and arithmetic are alone, and say at "
        "the end what share of that the run reached",
        default=False,
    )
    nvtx: bool = setting("name what the run does for profilers of NVIDIA", default=False)
    processes: str = setting(
        "processes of this machine that share the work; auto is one for each GPU",
        default="1", rule=matching(r"auto|[1-9]\d*", "auto or a whole number of at least 1"),
        metavar="N|auto", commands=SHARED,
    )  # fmt: skip
    process_timeout: float = setting(
        "time after which one of several processes that does not answer counts as lost",
        default=60.0,
        shown="60",
        rule=finite(1),
        metavar="SECONDS",
        commands=SHARED,
    )

    def __post_init__(self) -> None:
        for each in settings_of(ExecutionConfig):
            each.check(getattr(self, each.name))
        if self.read_threads is not None and self.read_threads > MOST_READ_THREADS:
            rule = f" must be at most {MOST_READ_THREADS}, not {self.read_threads:,}"
            raise ConfigError(Option("read_threads"), rule)
