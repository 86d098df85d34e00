"""What a run is asked to do, as frozen values that are checked when they are made.

Two kinds of settings are kept apart, because resuming treats them differently:
`FitConfig` decides the result, so a run goes on only under the same one;
`ExecutionConfig` decides how fast and in how much memory the result is
reached, and may change from one attempt to the next.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from streamkm.errors import ConfigError, Option

__all__ = [
    "INITS",
    "KERNELS",
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

#: What ``--kernel`` may name beside ``auto``; `streamkm.kernels.select` makes them.
KERNELS = ("cpu", "reference", "triton")
#: Ways of seeding, beside a file.
INITS = ("auto", "random", "k-means++", "k-means||")

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for suffix, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that decides the result of a fit, apart from the data.

    A value of None means "decide from the array's shape"; `resolved` does.
    """

    k: int
    """Number of clusters."""
    algorithm: Literal["minibatch", "lloyd"] = "minibatch"
    """Update after every batch, or once after each full pass."""
    epochs: int | None = None
    """Passes over the data at most; by default 1 for minibatch and 100 for lloyd."""
    batch_rows: int | None = None
    """Rows of one batch at most; by default from 1024 to 16384 by the array's shape."""
    init: str = "auto"
    """``auto``, ``k-means++`` or ``random`` on a sample of the data, ``k-means||`` on all of it,
    or a .npy file of k x D centroids; ``given`` if they are passed to
    `streamkm.runs.fit.fit` as an array."""
    n_init: int = 1
    """How many seedings are made; the run goes on from the one that costs least on rows that
    none of them saw."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance; cosine is spherical k-means: rows and centroids have unit length."""
    scale: Literal["none", "zscore", "minmax", "l2"] = "none"
    """What is done to the features before distances are taken."""
    tol: float | None = None
    """Stop when the squared centroid shift is at most this times the mean variance of the
    features; by default 1e-4 for lloyd, and 0 (off) for minibatch."""
    max_no_improvement: int | None = None
    """Minibatch: stop after so many steps without a better smoothed inertia; by default never."""
    seed: int = 0
    """Decides the order of rows, the seeding and every other draw."""
    nan: Literal["error", "drop"] = "error"
    """What to do about rows that hold NaN or infinity: stop, or leave them out and count them."""
    closing_pass: bool = True
    """End with a pass of Lloyd's algorithm, so that sizes and inertia belong to the centroids:
    always after minibatch; after lloyd, whose passes are all such, only if the last one left
    clusters without a row."""
    precision: Literal["exact", "fast"] = "exact"
    """``exact``: labels are the true nearest centroids; rows that screening cannot tell apart
    are scored again. ``fast`` leaves that out."""

    def __post_init__(self) -> None:
        _check_int("k", self.k, least=1)
        _check_choice("algorithm", self.algorithm, ("minibatch", "lloyd"))
        _check_choice("metric", self.metric, ("euclidean", "cosine"))
        _check_choice("scale", self.scale, ("none", "zscore", "minmax", "l2"))
        _check_choice("nan", self.nan, ("error", "drop"))
        _check_choice("precision", self.precision, ("exact", "fast"))
        _check_int("seed", self.seed, least=0)
        _check_flag("closing_pass", self.closing_pass)
        if self.epochs is not None:
            _check_int("epochs", self.epochs, least=1)
        if self.batch_rows is not None:
            _check_int("batch_rows", self.batch_rows, least=1)
        if self.max_no_improvement is not None:
            _check_int("max_no_improvement", self.max_no_improvement, least=1)
            if self.algorithm != "minibatch":
                raise ConfigError(
                    Option("max_no_improvement"),
                    " watches the inertia of batches and needs ",
                    Option("algorithm", "minibatch"),
                    f", not {self.algorithm}; use ",
                    Option("tol"),
                )
        if self.tol is not None and not (math.isfinite(self.tol) and self.tol >= 0):
            raise ConfigError(f"tol must be a finite number of at least 0, not {self.tol}")
        _check_int("n_init", self.n_init, least=1)
        if self.init not in (*INITS, "given") and not self.init.endswith(".npy"):
            raise ConfigError(
                f"init must be one of {', '.join(INITS)} or the path of a .npy file, "
                f"not {self.init!r}"
            )
        if self.n_init > 1 and (self.init == "given" or self.init.endswith(".npy")):
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
        lloyd = self.algorithm == "lloyd"
        batch_rows = self.batch_rows or default_batch_rows(n_rows, n_features)
        return ResolvedFitConfig(
            **asdict(self)
            | {
                "epochs": self.epochs or (100 if lloyd else 1),
                "batch_rows": min(batch_rows, n_rows),
                "tol": self.tol if self.tol is not None else (1e-4 if lloyd else 0.0),
            }
        )

    @property
    def normalizes(self) -> bool:
        """Whether rows are divided by their lengths."""
        return self.metric == "cosine" or self.scale == "l2"

    @property
    def closes(self) -> bool:
        """Whether a closing pass is certain."""
        return self.closing_pass and self.algorithm == "minibatch"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ResolvedFitConfig(FitConfig):
    """A `FitConfig` whose open settings are decided."""

    epochs: int
    batch_rows: int
    tol: float


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to save: every so many seconds, or every so many batches."""

    seconds: float | None = None
    batches: int | None = None

    def is_due(self, n_batches: int, elapsed_s: float) -> bool:
        """Whether to save, so many batches and seconds after the last time."""
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


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is carried out; none of it decides the result."""

    device: str = "auto"
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:I``."""
    checkpoint_every: Cadence = Cadence(seconds=60)
    """Time or number of batches between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, at least 2."""
    max_host_memory: int | None = None
    """Bytes of host memory for everything beyond what importing the package takes."""
    read_threads: int | None = None
    """Threads that read; by default one a core, 16 at most. 0 reads between batches, which is
    quickest where starting a thread takes longer than reading the whole array."""
    kernel: str = "auto"
    """Who does the arithmetic: ``auto`` (the fastest on the device), or one of `KERNELS`."""
    probe: bool = False
    """Measure at the start, for a second or so, what each stage can do alone."""
    tune: bool = True
    """Whether a GPU may time several ways to cut its work once, and remember the fastest."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:I, not {self.device!r}")
        _check_int("keep_checkpoints", self.keep_checkpoints, least=2)
        _check_choice("kernel", self.kernel, ("auto", *KERNELS))
        _check_flag("probe", self.probe)
        _check_flag("tune", self.tune)
        if self.max_host_memory is not None:
            _check_int("max_host_memory", self.max_host_memory, least=1)
        if self.read_threads is not None:
            _check_int("read_threads", self.read_threads, least=0)
            if self.read_threads > MOST_READ_THREADS:
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


def parse_bytes(text: str) -> int:
    """Bytes in ``8GiB``, ``512 MB``, ``1.5g`` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b?|[kmgt]ib)", text.strip().lower())
    if not match:
        raise ConfigError(f"a size is a number of bytes or such as 8GiB or 512MB, not {text!r}")
    unit = match[2] if match[2] in _UNITS else match[2] + "b"
    return int(float(match[1]) * _UNITS[unit])


def format_bytes(n_bytes: float) -> str:
    """``n_bytes`` for people: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def counted(n: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``, ``3 batches``, ``2 epochs``."""
    return f"{n:,} {noun if n == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """``rows``, ``batches``, ``passes``."""
    return noun + ("es" if noun.endswith(("tch", "ss")) else "s")


def _check_int(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        rule = f" must be a whole number of at least {least}, not {value!r}"
        raise ConfigError(Option(name), rule)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(Option(name), f" must be true or false, not {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(Option(name), f" must be one of {', '.join(choices)}, not {value!r}")
