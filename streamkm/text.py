"""Converts sizes, counts and words of a command to and from the text that people read and write."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING

from streamkm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "TIME_FORMAT",
    "counted",
    "format_bytes",
    "now",
    "parse_bytes",
    "plural",
    "with_spans_joined",
]

#: The time at the beginning of a line in a log: ISO 8601, with the offset of the machine's zone.
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for suffix, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def parse_bytes(text: str) -> int:
    """The bytes in ``8GiB``, ``512 MB``, ``1.5g`` (powers of 1000) or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b?|[kmgt]ib)", text.strip().lower())
    n_bytes = math.inf  # As a float says of more than 308 digits, too.
    if match:
        unit = match[2] if match[2] in _UNITS else match[2] + "b"
        n_bytes = float(match[1]) * _UNITS[unit]
    if n_bytes == math.inf:
        raise ConfigError(f"a size is a number of bytes or such as 8GiB or 512MB, not {text!r}")
    return int(n_bytes)


def format_bytes(n_bytes: float) -> str:
    """`n_bytes` in the unit that suits it: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def counted(n: int, noun: str) -> str:
    """`n` and the noun in its number: ``1 row``, ``2,000 rows``, ``3 batches``."""
    return f"{n:,} {noun if n == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of an English noun: ``rows``, ``batches``, ``passes``, ``entries``."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("tch", "ss")) else "s")


def now() -> str:
    """The time, as lines in a log have it: ``2026-11-30T07:20:31+0000``."""
    return time.strftime(TIME_FORMAT)


def with_spans_joined(argv: Iterable[str]) -> list[str]:
    """`argv` with ``--rows -5:`` as one word: argparse takes ``-5:`` for an option."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--rows" and re.match(r"-\d+:", word):
            joined[-1] = f"--rows={word}"
        else:
            joined.append(word)
    return joined
