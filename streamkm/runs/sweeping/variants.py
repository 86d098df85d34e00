"""The fits of a sweep: which K, seeds, scales and metrics, and what their folders are called.

Imports no torch, so that a mistyped K is refused at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from streamkm.config import FitConfig
from streamkm.errors import ConfigError, Option
from streamkm.settings import setting_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Space",
    "Variant",
    "check_variants",
    "in_order",
    "parse_ks",
    "spaces_of",
    "variants_of",
]

#: Values of K that a range may stand for, at most: a longer list is a mistake in its step.
MOST_KS = 1000
#: Digits of K in the name of a folder, at least, so that folders sort by K.
DIGITS = 4


@dataclass(frozen=True, slots=True, order=True)
class Space:
    """Where the distances of a fit are taken: how rows are scaled, and the metric.

    Figures that are sums or means of distances can be compared within one space only.
    """

    place: int
    """Its place among all spaces that there are."""
    scale: str
    metric: str
    name: str = ""
    """What tells it from the other spaces of the sweep; empty if there are none."""

    def labels(self) -> dict[str, str]:
        """What its fits and their figures have in sweep.json beside K and seed, if anything."""
        return {"scale": self.scale, "metric": self.metric} if self.name else {}


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One fit of a sweep."""

    space: Space
    k: int
    seed: int
    name: str
    """The name of its run folder: ``k-0016``, or ``k-0016-seed-1`` beside the first seed, with the
    scale and the metric after K if the sweep has several."""

    def __str__(self) -> str:
        space = f" {self.space.name}" if self.space.name else ""
        return f"k {self.k:,}{space}" + (f", seed {self.seed}" if "-seed-" in self.name else "")

    @property
    def of_all_seeds(self) -> tuple[Space, int]:
        """What it has in common with the fits of other seeds alone."""
        return self.space, self.k

    def config(self, base: FitConfig) -> FitConfig:
        """`base` with what is this fit's own."""
        in_space = _in_space(base, self.space.scale, self.space.metric)
        return replace(in_space, k=self.k, seed=self.seed)

    def as_dict(self) -> dict[str, Any]:
        """What sweep.json says of it."""
        return {"name": self.name, "k": self.k, "seed": self.seed, **self.space.labels()}


def parse_ks(text: str) -> list[int]:
    """The K in ``16``, in ``8:64:8`` (steps of 8) or in ``8:1024:x2`` (each twice the last)."""
    if re.fullmatch(r"\d{1,18}", text):
        return [int(text)]
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18}):(x?)(\d{1,18}(?:\.\d+)?)", text)
    step = float(match[4]) if match else 0.0
    if match is None or (step <= 1 if match[3] else step < 1 or not step.is_integer()):
        raise ConfigError(
            Option("k"),
            " must be whole numbers, ranges with a step (8:64:8) or with a factor above 1 "
            f"(8:1024:x2), with spaces between and SOURCE before the option, not {text!r}",
        )
    ks: list[int] = []
    value, last = float(match[1]), int(match[2])
    while round(value) <= last and len(ks) <= MOST_KS and value:
        ks.append(round(value))
        value = value * step if match[3] else value + step
    if not 0 < len(ks) <= MOST_KS:
        found = f"more than {MOST_KS:,} numbers" if ks else "no number of at least 1"
        raise ConfigError(
            Option("k"), f": {text} holds {found}; write FIRST:LAST:STEP, {MOST_KS:,} K at most"
        )
    # Small factors step from one whole number to the same.
    return list(dict.fromkeys(ks))


def in_order(name: str, values: Iterable[int]) -> tuple[list[int], list[str]]:
    """`values` sorted, each once; and a note if they were not, `name` being their option."""
    given = list(values)
    found = sorted(set(given))
    if not found:
        raise ConfigError(Option(name), " must be given at least one value")
    if found == given:
        return found, []
    twice = len(given) - len(found)
    said = " and ".join(filter(None, (f"{twice} given twice" if twice else "", "sorted")))
    return found, [f"{Option(name).flag}: {said}: {' '.join(map(str, found))}"]


def spaces_of(
    base: FitConfig, scales: Sequence[str], metrics: Sequence[str]
) -> tuple[list[Space], list[str]]:
    """Every scale with every metric, those of `base` where none are given; and notes.

    Left out, with a note, is a scale that the metric cannot have.

    Raises
    ------
    ConfigError
        If one of `scales` or `metrics` is unknown, or no pair of them is left.
    """
    rules = {name: setting_of(FitConfig, name).rule for name in ("scale", "metric")}
    asked = {"scale": list(scales) or [base.scale], "metric": list(metrics) or [base.metric]}
    found: list[Space] = []
    errors: dict[tuple[str, str], ConfigError] = {}
    for place, (scale, metric) in enumerate(product(*(rule.choices for rule in rules.values()))):
        if scale not in asked["scale"] or metric not in asked["metric"]:
            continue
        try:
            _in_space(base, scale, metric)
        except ConfigError as error:
            errors[scale, metric] = error
        else:
            found.append(Space(place, scale, metric))
    for name, values in asked.items():
        for value in values:
            if not rules[name].admits(value):
                raise ConfigError(Option(name), f" must be {rules[name].text}, not {value!r}")
    if not found:
        raise next(iter(errors.values()))
    notes = [
        f"scale {scale} with metric {metric} is left out: {metric} compares directions from the "
        "origin, which it moves"
        for scale, metric in errors
    ]
    several = {name for name in asked if len({getattr(each, name) for each in found}) > 1}
    return [
        replace(each, name="-".join(getattr(each, name) for name in asked if name in several))
        for each in found
    ], notes


def _in_space(base: FitConfig, scale: str, metric: str) -> FitConfig:
    own: dict[str, Any] = {"scale": scale, "metric": metric}
    return replace(base, **own)


def variants_of(
    spaces: Sequence[Space], ks: Sequence[int], seeds: Sequence[int], first_seed: int
) -> list[Variant]:
    """Every K with every seed in every space.

    Folders of the first seed of the sweep bear no seed, those of a sweep in one space no space.
    """
    return [
        Variant(
            space, k, seed,
            f"k-{k:0{DIGITS}}" + (f"-{space.name}" if space.name else "")
            + ("" if seed == first_seed else f"-seed-{seed}"),
        )
        for space in spaces
        for k in ks
        for seed in seeds
    ]  # fmt: skip


def check_variants(
    base: FitConfig, ks: Sequence[int], seeds: Sequence[int], n_rows: int, source: str
) -> None:
    """Refuse settings, K and seeds that a sweep cannot have, before anything is read."""
    for name, values, of_one in (("n_clusters", ks, "k"), ("seeds", seeds, "seed")):
        rule = setting_of(FitConfig, of_one).rule
        if wrong := [value for value in values if not rule.admits(value)]:
            raise ConfigError(Option(name), f": each must be {rule.text}, not {wrong[0]}")
    too_many = [k for k in ks if k > n_rows]
    if too_many:
        raise ConfigError(
            Option("n_clusters"),
            f": each must be at most the number of rows: {source} has {n_rows:,}, not "
            f"{', '.join(f'{k:,}' for k in too_many)}; leave out what is more",
        )
    if base.init.endswith(".npy") or base.init == "given":
        raise ConfigError(
            Option("init", base.init),
            " holds the centroids of one K, and a sweep has several; choose one that finds them",
        )
