"""JSON that holds its own checksum: manifests, cursors, config.json."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["seal", "unseal"]


def seal(body: dict[str, Any]) -> bytes:
    """JSON that holds its own sha256 beside `body`."""
    return json.dumps({**body, "sha256": _digest(body)}, indent=2).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises
    ------
    ValueError
        If `content` is anything else, or was altered.
    """
    try:
        body = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
        raise ValueError("its checksum does not match")
    return body


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
