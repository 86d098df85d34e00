"""The fits of a sweep: which K and which seeds, and what their folders are called.

Imports no torch, so that a mistyped K is refused at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from streamkm.config import FitConfig
from streamkm.errors import ConfigError, Option
from streamkm.settings import setting_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Variant", "check_variants", "in_order", "parse_ks", "variants_of"]

#: Values of K that a range may stand for, at most: a longer list is a mistake in its step.
MOST_KS = 1000
#: Digits of K in the name of a folder, at least, so that folders sort by K.
DIGITS = 4


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One fit of a sweep."""

    k: int
    seed: int
    name: str
    """The name of its run folder: ``k-0016``, or ``k-0016-seed-1`` beside the first seed."""

    def __str__(self) -> str:
        return f"k {self.k:,}" + (f", seed {self.seed}" if "-seed-" in self.name else "")

    def config(self, base: FitConfig) -> FitConfig:
        """`base` with this K and seed."""
        return replace(base, k=self.k, seed=self.seed)


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


def variants_of(ks: Sequence[int], seeds: Sequence[int], first_seed: int) -> list[Variant]:
    """Every K with every seed; folders of the first seed of the sweep bear no seed."""
    return [
        Variant(k, seed, f"k-{k:0{DIGITS}}" + ("" if seed == first_seed else f"-seed-{seed}"))
        for k in ks
        for seed in seeds
    ]


def check_variants(
    base: FitConfig, ks: Sequence[int], seeds: Sequence[int], n_rows: int, source: str
) -> None:
    """Refuse settings, K and seeds that a sweep cannot have, before anything is read."""
    for name, values, of_one in (("k", ks, "k"), ("seeds", seeds, "seed")):
        rule = setting_of(FitConfig, of_one).rule
        if wrong := [value for value in values if not rule.admits(value)]:
            raise ConfigError(Option(name), f": each must be {rule.text}, not {wrong[0]}")
    too_many = [k for k in ks if k > n_rows]
    if too_many:
        raise ConfigError(
            f"every k must be at most the number of rows: {source} has {n_rows:,}, "
            f"k is {', '.join(f'{k:,}' for k in too_many)}; leave out what is more"
        )
    if base.init.endswith(".npy") or base.init == "given":
        raise ConfigError(
            Option("init", base.init),
            " holds the centroids of one K, and a sweep has several; choose one that finds them",
        )
