"""Changes to valid files that a stranger, or a bad disk, might make; drawn from one generator."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

#: What numbers in headers become: ends of every type, and what they are multiplied to.
NUMBERS = (
    0, 1, 2, 3, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
    2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, 10**30, 1.5, 1e308, "", "../../x", "/etc/passwd", "..", "pickle", "|O", "<M8[ns]",
    "object", None, True, [], {}, [[]], [2**40, 2**40], {"id": "pickle"}, {"name": "pickle"}, "é\0",
)  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four changes; of JSON often by its values."""
    for _ in range(rng.randint(1, 4)):
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict | list) and rng.random() < 0.8:
            content = json.dumps(_changed(document, rng)).encode()
        else:
            content = _damaged(content, rng)
    return content


def _changed(document: Any, rng: random.Random) -> Any:
    """A document with one value, somewhere, replaced, removed, repeated or moved."""
    node, places = document, []

    def collect(node: Any) -> None:
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            for key in keys:
                places.append((node, key))
                collect(node[key])

    collect(node)
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.65:
        holder[key] = rng.choice(VALUES)
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place] if place in _keys(other) else None))
    elif isinstance(holder, list):
        holder.insert(key, rng.choice((rng.choice(VALUES), holder[key])))
    else:
        holder[rng.choice(("shape", "filters", "codecs", "dtype", "x"))] = rng.choice(VALUES)
    return document


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, moved, or overwritten by a number; most often near an end."""
    if not content:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(16)))
    reach = rng.choice((16, 64, 256, len(content)))
    place = min(rng.randrange(reach), len(content) - 1)
    if rng.random() < 0.3:
        place = len(content) - 1 - place
    length = rng.choice((1, 2, 4, 8, rng.randrange(1, 64)))
    kind = rng.randrange(7)
    before, after = content[:place], content[place + length :]
    if kind == 0:
        return before + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    if kind == 1:
        return before
    if kind == 2:
        return before + after
    if kind == 3:
        return before + content[place : place + length] * rng.choice((2, 3, 100)) + after
    if kind == 4:
        number = rng.choice(NUMBERS) & (2**64 - 1)
        size, code = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
        packed = struct.pack(rng.choice("<>") + code, number & (256**size - 1))
        return before + packed + content[place + size :]
    if kind == 5:
        return before + str(rng.choice(NUMBERS)).encode() + content[place + 1 :]
    return before + bytes(rng.randrange(256) for _ in range(length)) + after
