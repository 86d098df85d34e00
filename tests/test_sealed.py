"""JSON under its own checksum: what is altered is refused, and said in words."""

from __future__ import annotations

import pytest

from streamkm.sealed import DAMAGE, in_words, seal, unseal

BODY = {"cursor": {"phase": "train", "batch": 7}, "step": 31, "name": "Grüße", "none": None}


def test_what_is_sealed_is_what_comes_out() -> None:
    content = seal(BODY)
    assert unseal(content) == BODY
    assert unseal(seal({})) == {}
    assert seal(BODY) == content


# Breaks when one bit goes unnoticed, or raises what no reader of a file expects.
def test_a_flipped_bit_anywhere_is_damage() -> None:
    content = seal(BODY)
    for at in range(len(content)):
        damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        try:
            body = unseal(damaged)
        except DAMAGE:
            continue
        # White space, and the case of a hexadecimal digit of an escape, say nothing.
        assert body == BODY, at


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON (line 1 column 1)"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "not text (byte 7)"),
        (b"[1, 2]", "JSON, but not an object"),
        (b'{"a": 1}', "checksum does not match"),
        (b'{"a": 1, "sha256": null}', "checksum does not match"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["empty", "cut off", "bytes", "array", "unsealed", "no digest", "deep"],
)
def test_what_was_never_sealed_is_refused_in_words(content: bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        unseal(content)
    assert said in in_words(caught.value)


def test_what_a_body_lacks_or_has_of_another_type_is_said_in_words() -> None:
    body = unseal(seal(BODY))
    with pytest.raises(KeyError) as lacking:
        body["epoch"]
    assert in_words(lacking.value) == "it lacks `epoch`"
    with pytest.raises(TypeError) as other:
        body["none"]["batch"]
    assert in_words(other.value) == "a value in it is of another type than was written"
