"""JSON that holds its own checksum: manifests, cursors, output records, config.json."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["DAMAGE", "in_words", "seal", "unseal"]

#: Errors that reading damaged JSON, or using what is in it, may raise.
DAMAGE = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


def seal(body: dict[str, Any]) -> bytes:
    """`body` as JSON, with its sha256 beside it."""
    return json.dumps({**body, "sha256": _digest(body)}, indent=2).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """The body that `seal` was given.

    Raises
    ------
    ValueError
        If `seal` did not make `content`, or it was altered.
    """
    try:
        body = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("it is JSON, but not an object")
    if body.pop("sha256", None) != _digest(body):
        raise ValueError("its checksum does not match")
    return body


def in_words(error: Exception) -> str:
    """One of `DAMAGE` as words about the file, for people."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON (line {error.lineno} column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text (byte {error.start})"
    if isinstance(error, KeyError):
        return f"it lacks `{error.args[0]}`"
    if isinstance(error, TypeError | AttributeError):
        return "a value in it is of another type than was written"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
