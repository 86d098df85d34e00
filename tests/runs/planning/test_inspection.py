"""A look at the rows before a run: what is worth a note, and what forbids it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from streamkm.config import FitConfig
from streamkm.runs.planning.inspection import look_at
from streamkm.sources.memory import MemorySource
from streamkm.stream.plan import plan_reading
from tests.runs.helpers import clusters


def looked(rows: np.ndarray, *, k: int = 4, window_blocks: int = 16, **settings: Any):
    source = MemorySource(rows)
    config = FitConfig(k=k, **settings).resolved(*rows.shape)
    seed = 0 if config.algorithm == "minibatch" else None
    plan = plan_reading(source.spec, batch_rows=64, seed=seed)
    plan = replace(plan, block_rows=max(len(rows) // 32, 1), window_blocks=window_blocks)
    return look_at(source, plan, config)


def notes(rows: np.ndarray, **options: Any) -> str:
    look = looked(rows, **options)
    assert look.error is None
    return "\n".join(look.notes)


SHUFFLED = np.random.default_rng(0).permutation(clusters(4000, 3))


def test_nothing_is_said_of_rows_that_are_as_they_should_be():
    assert notes(SHUFFLED) == ""
    assert notes(SHUFFLED.astype(np.float16)) == ""


def test_rows_that_look_sorted_are_told_with_what_is_done_about_it():
    ordered = SHUFFLED[np.argsort(SHUFFLED[:, 0])]
    ordered = ordered * np.array([1, 0.1, 0.1], np.float32)
    assert "rows look sorted" in notes(ordered)
    assert "batches mix them: each has rows of 16 of 32 blocks" in notes(ordered)
    assert "write the array in smaller chunks" in notes(ordered, window_blocks=1)
    assert "it makes no difference" in notes(ordered, algorithm="lloyd")


def test_features_that_are_constant_matter_where_they_are_scaled():
    rows = SHUFFLED.copy()
    rows[:, 1] = 7
    assert notes(rows) == ""
    assert "1 of 3 features are constant in the sample (the first is 1)" in notes(
        rows, scale="zscore"
    )


def test_the_end_of_float16_is_told():
    rows = SHUFFLED.astype(np.float16)
    rows[5, 0] = 65504
    assert "values up to 65,504: float16 ends at" in notes(rows)


# They are computed in another unit.
def test_lengths_that_overflow_forbid_nothing():
    rows = 1e30 * SHUFFLED
    assert looked(rows).error is None
    assert looked(np.full((100, 3), np.iinfo(np.uint64).max)).error is None


def test_rows_without_direction_rows_that_are_the_same_and_few_rows():
    rows = SHUFFLED.copy()
    rows[::2] = 0
    assert "2,000 rows of the sample are all zeros" in notes(rows, metric="cosine")
    assert "only 2 are distinct, k is 4" in notes(np.repeat(np.eye(2), 50, axis=0))
    assert "k is 1,000: 4.0 rows a cluster on average" in notes(SHUFFLED, k=1000)


# The row that is named is the array's, not the sample's.
def test_rows_far_into_the_array_are_named_by_their_number():
    source = MemorySource(np.zeros((100_000, 2)))
    unit = source.spec.piece_rows or source.spec.block_rows
    rows = np.random.default_rng(0).normal(size=(100_000, 2))
    start = (100_000 // unit - 1) * unit
    rows[start:, 1] = np.nan
    error = looked(rows).error
    assert error is not None
    found = re.search(r"row (\d+) holds nan \(feature 1", str(error))
    assert found
    assert int(found[1]) >= start
