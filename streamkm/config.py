"""Every setting of a run, one field each, as frozen values that are checked when they are made.

There are two classes of settings, because resuming treats them differently. `FitConfig` decides
the result, so a run goes on only under the same one. `ExecutionConfig` decides how fast and in
how much memory the result is reached, and may change from one attempt to the next.

A field is all that a setting needs: its option, its line in the help, its key in ``--config`` and
its check are made from it (see `streamkm.settings`). Rules between several settings are written
out in ``__post_init__``. The names of algorithms and kernels, and the defaults of an algorithm,
come from `streamkm.tables`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from streamkm.errors import ConfigError, Option
from streamkm.settings import (
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
from streamkm.text import counted, format_bytes, parse_bytes, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.tables import AlgorithmEntry

__all__ = [
    "INITS",
    "Cadence",
    "ExecutionConfig",
    "FitConfig",
    "ResolvedFitConfig",
    "counted",
    "default_batch_rows",
    "format_bytes",
    "largest_batch_rows",
    "parse_bytes",
    "plural",
    "setting_differences",
]

#: A batch is no longer than this, and no shorter unless the array is small:
#: long enough that fixed costs per step vanish, short enough to stay in cache.
MAX_BATCH_ROWS = 16384
MIN_BATCH_ROWS = 1024
#: An epoch should have about this many steps where the array is long enough.
STEPS_PER_EPOCH = 64
#: A batch widened to float32 should not pass this, whatever the number of features.
MAX_BATCH_BYTES = 64 << 20

#: More threads only wait for each other.
MOST_READ_THREADS = 256

#: Ways of seeding, beside a file.
INITS = ("auto", "random", "k-means++", "k-means||")

#: Commands that read rows and compute.
_ALL = ("fit", "predict", "evaluate")


def _names(has: Callable[[AlgorithmEntry], bool]) -> str:
    """The algorithms of which `has` is true, for a text."""
    return " or ".join(name for name, entry in ALGORITHMS.items() if has(entry))


def _by_algorithm(default: Callable[[AlgorithmEntry], str]) -> str:
    """A default that the algorithm decides, for the help."""
    return ", ".join(f"{default(entry)} for {name}" for name, entry in ALGORITHMS.items())


def _is_file(init: str) -> bool:
    return init.endswith(".npy")


#: Algorithms that know ``max_no_improvement``.
_BATCH_WATCHERS = _names(lambda entry: entry.watches_batches)


@config_class
class FitConfig:
    """Everything that decides the result of a fit, apart from the data.

    Each field is documented by the text of its `setting`, which ``fit --help`` shows. None means
    "decide from the algorithm and the array's shape"; `resolved` does.
    """

    k: int = setting("number of clusters", short="-k", rule=whole(1))
    algorithm: str = setting(
        "when centroids move: "
        + ", ".join(f"{name} {entry.summary}" for name, entry in ALGORITHMS.items()),
        default=next(iter(ALGORITHMS)),
        rule=one_of(*ALGORITHMS),
    )
    epochs: int | None = setting(
        "passes over the data at most",
        default=None,
        shown=_by_algorithm(lambda entry: str(entry.epochs)),
        rule=whole(1),
    )
    batch_rows: int | None = setting(
        "rows of a batch at most",
        default=None,
        shown=f"{MIN_BATCH_ROWS} to {MAX_BATCH_ROWS} by the array's shape",
        rule=whole(1),
    )
    # "given" stands for centroids that a caller in Python passes as an array.
    init: str = setting(
        "auto, random or k-means++ on a sample of the rows, k-means|| on all of them, or a .npy "
        "file of k x D centroids",
        default="auto",
        rule=Rule(
            f"one of {', '.join(INITS)} or the path of a .npy file",
            lambda init: isinstance(init, str) and (init in (*INITS, "given") or _is_file(init)),
        ),
    )
    n_init: int = setting(
        "make N seedings, and go on from the one that costs least on rows that none of them saw",
        default=1,
        rule=whole(1),
        metavar="N",
    )
    metric: Literal["euclidean", "cosine"] = setting(
        "distance; with cosine, rows and centroids have unit length", default="euclidean"
    )
    scale: Literal["none", "zscore", "minmax", "l2"] = setting(
        "how features are scaled before distances are taken", default="none"
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
    seed: int = setting(
        "decides the order of rows, the seeding and every other draw", default=0, rule=whole(0)
    )
    nan: Literal["error", "drop"] = setting(
        "rows with NaN or infinity: stop, or leave them out and count them", default="error"
    )
    closing_pass: bool = setting(
        "end with a pass that makes each centroid the mean of its cluster; after "
        f"{_names(lambda entry: not entry.closes)} only if a cluster has no row",
        default=True,
    )
    precision: Literal["exact", "fast"] = setting(
        "exact: labels are the true nearest centroids; fast: rows that screening cannot tell "
        "apart are not scored again",
        default="exact",
    )

    def __post_init__(self) -> None:
        for each in settings_of(FitConfig):
            each.check(getattr(self, each.name))
        if self.max_no_improvement is not None and not self._entry.watches_batches:
            raise ConfigError(
                Option("max_no_improvement"),
                " watches the inertia of batches and needs ",
                Option("algorithm", _BATCH_WATCHERS),
                f", not {self.algorithm}; use ",
                Option("tol"),
            )
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

    def resolved(self, n_rows: int, n_features: int) -> ResolvedFitConfig:
        """The same settings with nothing left open, as a function of the array's shape."""
        batch_rows = self.batch_rows or default_batch_rows(n_rows, n_features)
        return ResolvedFitConfig(
            **asdict(self)
            | {
                "epochs": self.epochs or self._entry.epochs,
                "batch_rows": min(batch_rows, n_rows),
                "tol": self._entry.tol if self.tol is None else self.tol,
            }
        )

    @property
    def normalizes(self) -> bool:
        """Whether rows are divided by their lengths."""
        return self.metric == "cosine" or self.scale == "l2"

    @property
    def closes(self) -> bool:
        """Whether a closing pass is certain."""
        return self.closing_pass and self._entry.closes

    @property
    def _entry(self) -> AlgorithmEntry:
        return ALGORITHMS[self.algorithm]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@config_class
class ResolvedFitConfig(FitConfig):
    """A `FitConfig` whose open settings are decided."""

    epochs: int
    batch_rows: int
    tol: float


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to save: after a number of seconds, or of batches."""

    seconds: float | None = None
    batches: int | None = None

    def __str__(self) -> str:
        return str(self.batches) if self.seconds is None else f"{self.seconds:g}s"

    def is_due(self, n_batches: int, elapsed_s: float) -> bool:
        """Whether to save, `n_batches` and `elapsed_s` seconds after the last time."""
        if self.batches is not None:
            return n_batches >= self.batches
        assert self.seconds is not None
        return elapsed_s >= self.seconds

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """``60s`` (also ``5m``, ``1h``) or a number of batches."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", text.strip())
        if match:
            seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
            if seconds > 0:
                return cls(seconds=seconds)
        elif re.fullmatch(r"\d+", text.strip()) and int(text) > 0:
            return cls(batches=int(text))
        raise ConfigError(
            f"checkpoint-every must be a time such as 60s, 5m, 1h or a number of batches, "
            f"not {text!r}"
        )


@config_class
class ExecutionConfig:
    """How a run is carried out; none of it decides the result.

    Each field is documented by the text of its `setting`, as in `FitConfig`.
    """

    device: str = setting(
        "auto (CUDA if there is one), cpu, cuda or cuda:I",
        default="auto",
        rule=matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:I"),
        commands=_ALL,
    )
    kernel: str = setting(
        "who does the arithmetic; auto is the fastest on the device",
        default="auto",
        rule=one_of("auto", *sorted(KERNELS)),
        commands=_ALL,
    )
    tune: bool = setting(
        "on a GPU with 4096 clusters or more, time several ways to cut the work at first use; "
        "$XDG_CACHE_HOME/streamkm remembers the fastest",
        default=True,
        commands=_ALL,
    )
    max_host_memory: int | None = setting(
        "host memory beyond what importing the package takes, such as 8GiB",
        default=None,
        shown="8GiB or half the machine's",
        rule=whole(1),
        parse=parse_bytes,
        metavar="SIZE",
        commands=_ALL,
    )
    read_threads: int | None = setting(
        "threads that read; 0 reads between batches, which is quickest where starting a thread "
        "takes longer than reading the array",
        default=None,
        shown="one a core, 16 at most",
        rule=whole(0),
        metavar="N",
        commands=_ALL,
    )
    checkpoint_every: Cadence = setting(
        "time or number of batches between saves",
        default=Cadence(seconds=60),
        parse=Cadence.parse,
        metavar="60s|N",
        commands=("fit", "predict"),
    )
    keep_checkpoints: int = setting(
        "how many of the newest checkpoints to keep", default=2, rule=whole(2), metavar="N"
    )
    probe: bool = setting(
        "measure for a second at the start what reading, copying and arithmetic can do alone, "
        "and say at the end what share of that was reached",
        default=False,
    )

    def __post_init__(self) -> None:
        for each in settings_of(ExecutionConfig):
            each.check(getattr(self, each.name))
        if self.read_threads is not None and self.read_threads > MOST_READ_THREADS:
            rule = f" must be at most {MOST_READ_THREADS}, not {self.read_threads:,}"
            raise ConfigError(Option("read_threads"), rule)


def default_batch_rows(n_rows: int, n_features: int) -> int:
    """Rows of a batch, by the shape of the array."""
    wanted = max(n_rows // STEPS_PER_EPOCH, MIN_BATCH_ROWS)
    return min(wanted, largest_batch_rows(n_rows, n_features))


def largest_batch_rows(n_rows: int, n_features: int) -> int:
    """Rows of a batch where nothing but speed depends on it."""
    fitting = MAX_BATCH_BYTES // (4 * n_features)
    return min(max(min(MAX_BATCH_ROWS, fitting), 1), n_rows)


def setting_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``name: before -> now`` for every setting of two `FitConfig.as_dict` that differs."""
    return [
        f"{field.name.replace('_', '-')}: {before.get(field.name)} -> {now.get(field.name)}"
        for field in fields(FitConfig)
        if before.get(field.name) != now.get(field.name)
    ]
