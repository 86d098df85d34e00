"""Rows of a tensor on the device: the same windows as those of an array, and nothing read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from streamkm import KMeans, MiniBatchKMeans
from streamkm.errors import NonFiniteError, SourceError
from streamkm.sources import DTYPES, open_source, open_weights
from streamkm.sources.memory import MemorySource
from streamkm.stream.pipeline import stream
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.stages import StageTimes
from streamkm.stream.tensor_source import TensorSource, tensor_on
from streamkm.stream.transfer import _copy_there, as_stored_tensor
from tests.sources.contract import Case, SourceContract, numbers
from tests.stream.fake_gpu import FakeGpu
from tests.stream.helpers import batches_of, slots_for, within

if TYPE_CHECKING:
    from streamkm.stream.transfer import DeviceWindow


def tensor_of(array: np.ndarray, dtype: str) -> torch.Tensor:
    return as_stored_tensor(array, dtype)


def as_bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


class TestTensor(SourceContract):
    @pytest.fixture(params=[*DTYPES, "transposed", "3-D"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        dtype = request.param if request.param in DTYPES else "float32"
        shape = (7, 29, 5) if request.param == "3-D" else (203, 5)
        array = numbers(shape, DTYPES[dtype])
        if request.param == "transposed":
            array = np.asfortranarray(array)
        held = [array]
        return Case(
            array=array,
            dtype=dtype,
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: TensorSource(tensor_of(held[0], dtype)),
        )


# Breaks when a run on a tensor could not be resumed with the same numbers in an array.
def test_spec_and_fingerprint_are_those_of_an_array() -> None:
    array = numbers((70000, 9), "int16")
    source, other = TensorSource(torch.from_numpy(array)), MemorySource(array)
    assert source.fingerprint() == other.fingerprint()
    assert source.spec.block_rows == other.spec.block_rows < 70000
    assert source.spec.piece_rows == other.spec.piece_rows


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3), "two dimensions"),
        (torch.zeros((0, 3)), "empty"),
        (torch.zeros((3, 3), dtype=torch.bool), "real numbers.*bool"),
        (torch.zeros((3, 3), dtype=torch.complex64), "real numbers.*complex64"),
    ],
)
def test_refuses_what_is_no_matrix_of_numbers(tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(SourceError, match=rf"^tensor on cpu: .*{says}"):
        TensorSource(tensor)


def test_rows_elsewhere_are_not_on_the_device() -> None:
    source = TensorSource(torch.zeros((3, 3)))
    assert tensor_on(source, torch.device("cpu")) is not None
    assert tensor_on(source, torch.device("meta")) is None
    assert tensor_on(open_source(np.zeros((3, 3))), torch.device("cpu")) is None


# ---- windows ----------------------------------------------------------------


def unreadable(tensor: torch.Tensor) -> TensorSource:
    """A source of `tensor` whose rows nobody may ask for by way of the host."""
    source = TensorSource(tensor)

    def fail(rows: object, out: np.ndarray) -> None:
        raise AssertionError(f"{rows} went through the host")

    source.read = fail  # type: ignore[method-assign]
    return source


def taken(window: DeviceWindow) -> list[tuple[np.ndarray, list[float] | None]]:
    """Bits and weights of each batch; the window is overwritten, as who prepares it may."""
    batches = []
    for _, rows in window.batches():
        weights = None if window.weights_N is None else window.weights_N[rows].tolist()
        batches.append((as_bits(window.taken(rows).clone()), weights))
    window.x_ND.fill_(0)
    return batches


# Breaks when rows come in another order, with other weights, or as the caller's own memory.
@pytest.mark.parametrize("road", ["host", "fake gpu"])
@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_windows_are_copies_within_the_device(dtype: str, seed: int | None, road: str) -> None:
    array = numbers((206, 6), DTYPES[dtype])[::2, ::2]
    tensor = tensor_of(array, dtype)
    source, weights = unreadable(tensor), open_weights(np.arange(103) / 7, 103)
    plan = ReadingPlan(n_rows=103, block_rows=10, window_blocks=3, batch_rows=8, seed=seed)
    slots = slots_for(plan, source, weighted=True)
    before, times = array.copy(), StageTimes()

    def work() -> list[tuple[np.ndarray, list[float] | None]]:
        found = []
        if road == "host":
            with stream(source, plan.windows(1), slots, times, weights) as windows:
                for window in windows:
                    found += taken(window)
            return found
        with prefetch(source, plan.windows(1), slots, 2, times, weights, rows=False) as ahead:
            for window in _copy_there(ahead, source.spec, slots, times, FakeGpu(), tensor):
                found += taken(window)
        return found

    expected = [batch for window in plan.windows(1) for batch in batches_of(window)]
    for (bits, weights_B), rows in zip(within(30, work), expected, strict=True):
        np.testing.assert_array_equal(bits, np.ascontiguousarray(array[rows]).view(np.uint8))
        assert weights_B == (rows / 7).tolist()
    np.testing.assert_array_equal(array, before)
    assert times.bytes_read == 103 * source.spec.row_bytes


# Breaks when a copy waits for nobody: it must follow the work that made the tensor.
def test_copies_wait_for_the_streams_as_those_from_the_host_do() -> None:
    gpu = FakeGpu()
    tensor = torch.arange(200.0).reshape(100, 2)
    source = unreadable(tensor)
    plan = ReadingPlan(n_rows=100, block_rows=10, window_blocks=2, batch_rows=7, seed=None)
    slots, times = slots_for(plan, source), StageTimes()
    with prefetch(source, plan.windows(0), slots, 0, times, rows=False) as ahead:
        assert len(list(_copy_there(ahead, source.spec, slots, times, gpu, tensor))) == 5
    assert gpu.log[0] == ("wait stream", "copy", "compute")
    assert gpu.log[-1] == ("host waits", "copy")


# ---- whole fits -------------------------------------------------------------


def blobs(n_rows: int, n_features: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.integers(-40, 40, (7, n_features))
    rows = centres[np.arange(n_rows) % 7] + rng.normal(size=(n_rows, n_features)) * 9
    return np.asarray(rows.round(1).astype(dtype))


def results(estimator: Any, given: Any, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    estimator.fit(given, sample_weight=weights)
    return {
        "centers": estimator.cluster_centers_,
        "counts": estimator.counts_,
        "labels": estimator.labels_,
        "inertia": np.float64(estimator.inertia_),
        "predict": estimator.predict(given),
        "transform": estimator.transform(given),
        "score": np.float64(estimator.score(given, sample_weight=weights)),
    }


# Breaks when anything but the way of the rows is another for a tensor, or the tensor is changed.
@pytest.mark.parametrize("kind", [MiniBatchKMeans, KMeans])
@pytest.mark.parametrize(
    ("options", "dtype", "weighted"),
    [
        ({}, "float32", False),
        ({"init": "k-means||"}, "float32", True),
        ({"scale": "zscore"}, "float64", False),
        ({"scale": "zscore"}, "int8", True),
        ({"metric": "cosine"}, "float16", False),
        ({"nan": "drop"}, "float32", False),
        ({"nan": "drop", "scale": "minmax"}, "float32", True),
    ],
)
def test_fits_have_the_bits_of_an_array(
    kind: type, options: dict[str, Any], dtype: str, weighted: bool
) -> None:
    array = blobs(60000, 20, dtype)
    if "nan" in options:
        array[::997, 3] = np.nan
    weights = np.arange(60000) % 5 / 2 if weighted else None
    options = {
        "device": "cpu",
        **options,
        "random_state": 0,
        "max_iter": 3,
        "compute_labels": True,
        "tol": 0,
    }
    wanted = results(kind(7, **options), MemorySource(array), weights)
    tensor = torch.from_numpy(array.copy())
    found = results(kind(7, **options), unreadable(tensor), weights)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    np.testing.assert_array_equal(tensor, array)


def test_a_row_that_cannot_be_used_is_named() -> None:
    tensor = torch.ones((50, 3))
    tensor[17, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^tensor on cpu: row 17 holds nan \(feature 2"):
        KMeans(1).fit(TensorSource(tensor))
