"""Arrays in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamkm.errors import SourceError
from streamkm.sources import DTYPES, open_source
from streamkm.sources.memory import MemorySource
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUTS: dict[str, Callable[[], np.ndarray]] = {
    "C": lambda: numbers((203, 5)),
    "F": lambda: np.asfortranarray(numbers((203, 5))),
    "big-endian": lambda: numbers((203, 5), ">f4"),
    "every other row and column": lambda: numbers((406, 10))[::2, ::2],
    "reversed": lambda: numbers((203, 5))[::-1],
    "3-D": lambda: numbers((7, 29, 5)),
    "3-D, transposed": lambda: numbers((29, 7, 5)).transpose(1, 0, 2),
    "4-D, F": lambda: np.asfortranarray(numbers((3, 5, 11, 4))),
    **{dtype: partial(numbers, (50, 3), dtype) for dtype in DTYPES if dtype != "bfloat16"},
}


class TestMemory(SourceContract):
    @pytest.fixture(params=LAYOUTS)
    def case(self, request) -> Case:
        array = LAYOUTS[request.param]()
        held = [array]
        return Case(
            array=array,
            dtype=array.dtype.newbyteorder("=").name,
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: open_source(held[0]),
        )


class TestBfloat16Bits(SourceContract):
    @pytest.fixture
    def case(self) -> Case:
        array = numbers((60, 4), "uint16")
        held = [array]
        return Case(
            array=array,
            dtype="bfloat16",
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: open_source(held[0], dtype="bfloat16"),
        )


# Breaks when strides, not content, decide whether a run may resume.
def test_fingerprint_ignores_strides() -> None:
    array = numbers((101, 6))
    prints = {
        open_source(view).fingerprint()
        for view in (array, np.asfortranarray(array), array.astype(">f4"), array[::-1].copy()[::-1])
    }
    assert len(prints) == 1


# Breaks when an array in memory is copied at opening: it may fill half the memory.
def test_array_is_not_copied() -> None:
    array = numbers((10, 3))
    source = open_source(array)
    array[4] = 7
    assert same_bytes(read(source, 4, 5), array[4:5])


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# Breaks when rows are used where they lie though they would be read as others.
def test_rows_that_lie_as_they_are_read(tmp_path) -> None:
    there = numbers((3, 4, 5))
    source = MemorySource(there)
    assert source.rows_there is not None
    assert source.rows_there.shape == (12, 5)
    assert np.shares_memory(source.rows_there, there)
    np.save(tmp_path / "x.npy", there)
    masked = np.ma.masked_less(numbers((20, 3)), 0)
    for other in (
        np.asfortranarray(there),
        there[::2],
        there.astype(">f4"),
        read_only(there.copy()),
        np.load(tmp_path / "x.npy", mmap_mode="c")[1:],
        masked,
    ):
        assert MemorySource(other).rows_there is None


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(5, np.float32), r"two dimensions.*\(5,\)"),
        (np.zeros((0, 5), np.float32), r"empty.*\(0, 5\)"),
        (np.zeros((5, 0), np.float32), r"empty.*\(5, 0\)"),
        (np.zeros((2, 2), bool), "real numbers.*bool"),
        (np.zeros((2, 2), complex), "real numbers.*complex128"),
        (np.full((2, 2), None), "real numbers.*object"),
        (np.full((2, 2), "a"), "real numbers.*U1"),
        (np.full((2, 2), "a", np.dtypes.StringDType()), "real numbers.*String"),
        (np.zeros((2, 2), [("a", "f4")]), "elements are records of a; store"),
        (np.zeros((2, 2), "M8[s]"), "real numbers.*datetime64"),
    ],
    ids=lambda value: value.dtype.name if isinstance(value, np.ndarray) else "",
)
def test_refuses_what_is_no_matrix_of_numbers(array: np.ndarray, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(array)


# Breaks when what lies beneath a mask is clustered.
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float16", "float16"), (">f8", "float64"), ("int16", "float32"), ("uint64", "float64")],
)
def test_masked_values_are_nan(stored: str, dtype: str) -> None:
    array = numbers((7, 29, 5), stored)
    masked = np.ma.array(array, mask=False)
    masked[2, 3, 1] = masked[6, 28] = np.ma.masked
    source = open_source(masked)
    wanted = array.astype(dtype)
    wanted[2, 3, 1] = wanted[6, 28] = np.nan
    assert source.spec.dtype == dtype
    assert same_bytes(read(source, 0, 203), wanted.reshape(203, 5))
    assert "2 rows have masked values" in source.notes()[0]
    assert source.fingerprint() != open_source(array.astype(dtype)).fingerprint()


def test_a_mask_that_masks_nothing_changes_nothing() -> None:
    array = numbers((20, 5), "int16")
    source = open_source(np.ma.array(array, mask=np.zeros((20, 5), bool)))
    assert source.spec == open_source(array).spec
    assert same_bytes(read(source, 0, 20), array)
