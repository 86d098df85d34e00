"""The contract of sinks; each format's test class inherits it.

What is claimed is there, and what is there under its name is whole.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkm.errors import ConfigError, OutputExistsError, ResumeError, RunError
from streamkm.sinks import Part, PartedSink, Sink, has_parts, npy, open_part, open_sink
from streamkm.sinks.base import commit_together
from streamkm.sinks.places import beside, store_of
from streamkm.sinks.registry import stored_crc32

N, CHUNK_ROWS = 1000, 64


def labels(n: int = N, dtype: str = "int32") -> np.ndarray:
    return (np.arange(n) * 7 % 311 - 1).astype(dtype)


def partial_of(target: Path) -> Path:
    """Where the output grows."""
    return beside(target, ".partial")


def cursor_of(target: Path) -> Path:
    return beside(target, ".partial.json")


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in around(target) if path != target)


def around(target: Path) -> list[Path]:
    """What lies beside the output; for an array in a store also what lies in its group."""
    store = store_of(target)
    if store is None:
        return list(target.parent.iterdir())
    within = store.iterdir() if store.exists() else ()
    return [
        *(path for path in store.parent.iterdir() if path != store),
        *(path for path in within if path.name != "zarr.json"),
    ]


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from streamkm.sinks import open_sink
target, stop = sys.argv[1], int(sys.argv[2])
origin = Path(sys.argv[3]) if sys.argv[3:] else None
values = (np.arange(1000) * 7 % 311 - 1).astype(np.int32)
options = {"n_rows": 1000, "dtype": "int32", "chunk_rows": 64}
sink = open_sink(target, **options, resume=True, origin=origin)
start = sink.next_row
while start < stop:
    sink.write(start, values[start : start + 37])
    start = sink.next_row
    if start % 2:
        sink.flush()
        sink.write_cursor({"row": sink.durable_rows})
os._exit(9)
"""


class SinkContract:
    """Subclasses name the sink and its suffix, and say how its files are read and damaged."""

    sink: ClassVar[type[Sink]]
    suffix: ClassVar[str]
    durable_of_130: ClassVar[int]
    """Rows that are durable when 130 were written and flushed, with chunks of 64 rows."""
    synced: ClassVar[tuple[str, ...]]
    """Names of what is synced, in order, for 64 rows of ``out``, before the cursor."""

    takes_several: ClassVar[bool] = True
    """Whether rows may have several values; else they are refused."""

    def load(self, path: Path) -> np.ndarray:
        """The array, as the format's own library reads it."""
        raise NotImplementedError

    def leave_a_beginning(self, partial: Path) -> None:
        """Write at `partial` what a crash leaves that comes while the output is created."""
        raise NotImplementedError

    def lose_rows(self, partial: Path) -> None:
        """Remove rows that were durable from an unfinished output."""
        raise NotImplementedError

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        return self.place(tmp_path) / f"out{self.suffix}"

    def open(self, target: Path, *, n_rows: int, **options: Any) -> Sink:
        """The sink for `target`."""
        return open_sink(target, n_rows=n_rows, **{**self.options(target, n_rows), **options})

    def options(self, target: Path, n_rows: int) -> dict[str, Any]:
        """What else the format needs: nothing, or the file that an output is a copy of."""
        del target, n_rows
        return {}

    def place(self, folder: Path) -> Path:
        """Where in `folder` the outputs are."""
        return folder

    # ---- what is written --------------------------------------------------------

    # Breaks when rows are lost at a chunk's border, or the last chunk is not written.
    @pytest.mark.parametrize("size", [1000, 64, 100, 37, 1])
    @pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
    def test_round_trip(self, target: Path, size: int, dtype: str) -> None:
        values = labels(dtype=dtype)
        with self.open(target, n_rows=N, dtype=dtype, chunk_rows=CHUNK_ROWS) as sink:
            assert type(sink) is self.sink
            for start in range(0, N, size):
                sink.write(start, values[start : start + size])
                assert not target.exists()
            sink.commit()
        found = self.load(target)
        assert found.dtype == values.dtype
        assert (found == values).all()
        assert leftovers(target) == []
        assert stored_crc32(target, n_rows=N, dtype=values.dtype) == sink.crc32

    # Breaks when writes of any lengths, flushed anywhere, do not give the same array.
    @settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=12), st.integers(1, 70))
    def test_any_writes(
        self, tmp_path_factory, pieces: list[tuple[int, bool]], chunk_rows: int
    ) -> None:
        target = self.place(tmp_path_factory.mktemp("sink")) / f"x{self.suffix}"
        n = max(1, sum(length for length, _ in pieces))
        values = labels(n)
        with self.open(target, n_rows=n, dtype="int32", chunk_rows=chunk_rows) as sink:
            for length, flush in pieces:
                start = sink.next_row
                sink.write(start, values[start : start + length])
                if flush:
                    sink.flush()
                    assert sink.durable_rows <= sink.next_row
            sink.write(sink.next_row, values[sink.next_row :])
            sink.commit()
        assert (self.load(target) == values).all()

    # Breaks when zeros are left out, and look like rows that were never written.
    def test_zeros_are_stored_by_a_resumed_output_too(self, target: Path) -> None:
        with self.open(target, n_rows=100, dtype="int32", chunk_rows=10) as sink:
            sink.write(0, labels(20))
            sink.write_cursor({})
        with self.open(target, n_rows=100, dtype="int32", resume=True) as sink:
            sink.write(20, np.zeros(80, np.int32))
            sink.write_cursor({})
        with self.open(target, n_rows=100, dtype="int32", resume=True) as sink:
            assert sink.durable_rows == 100
            sink.commit()
        assert (self.load(target)[:20] == labels(20)).all()
        assert not self.load(target)[20:].any()

    def test_strided_values(self, target: Path) -> None:
        values = labels(200)
        with self.open(target, n_rows=100, dtype="int32", chunk_rows=7) as sink:
            sink.write(0, values[::2])
            sink.commit()
        assert (self.load(target) == values[::2]).all()

    # Breaks when `durable_rows` claims what is still in memory.
    def test_durable_rows(self, target: Path) -> None:
        values = labels()
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, values[:130])
            assert sink.durable_rows == 0
            sink.flush()
            assert sink.durable_rows == self.durable_of_130
            sink.write(130, values[130:])
            sink.flush()
            assert sink.durable_rows == N

    # Breaks when gaps read as zeros: label 0 is a cluster.
    def test_refuses_gaps_and_overruns(self, target: Path) -> None:
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            with pytest.raises(ValueError, match=r"rows 1:11 .*next is 0"):
                sink.write(1, labels(10))
            with pytest.raises(ValueError, match="rows 0:1001"):
                sink.write(0, labels(1001))
            with pytest.raises(ValueError, match=r"int32.*int64"):
                sink.write(0, labels(5, "int64"))
            with pytest.raises(ValueError, match="2 dimensions"):
                sink.write(0, labels(6).reshape(2, 3))
            sink.write(0, labels(10))
            with pytest.raises(ValueError, match="10 of 1000 rows"):
                sink.commit()
        assert not target.exists()
        with pytest.raises(ValueError, match="closed"):
            sink.write(10, labels(1))

    # Breaks when several processes write an output that was not made for it, or one that was made
    # for it is not tested.
    def test_who_may_write(self, target: Path) -> None:
        assert has_parts(target) == issubclass(self.sink, PartedSink)
        assert has_parts(target) == isinstance(self, PartedSinkContract)

    # ---- rows of several values -----------------------------------------------------

    # Breaks when rows are cut at another place than chunks, or values of a row are taken for rows.
    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    @pytest.mark.parametrize("m", [1, 3])
    def test_rows_of_several_values_are_resumed(self, target: Path, dtype: str, m: int) -> None:
        values = labels(N * m, dtype).reshape(N, m)
        several = np.dtype((dtype, (m,)))
        if not self.takes_several:
            with pytest.raises(ConfigError, match=f"one label a row, not those of the {m} nearest"):
                self.open(target, n_rows=N, dtype=several)
            assert leftovers(target) == []
            return
        with self.open(target, n_rows=N, dtype=several, chunk_rows=CHUNK_ROWS) as sink:
            for start in range(0, 500, 37):
                sink.write(start, values[start : start + 37])
            with pytest.raises(ValueError, match=f"rows of {m} x {dtype}"):
                sink.write(0, values[:5].reshape(-1))
            sink.write_cursor({})
            assert 0 < sink.durable_rows <= sink.next_row
        for other in (np.dtype((dtype, (m + 1,))), np.dtype(dtype)):
            with pytest.raises(ResumeError, match=f"holds.*{dtype}"):
                self.open(target, n_rows=N, dtype=other, resume=True)
        with self.open(target, n_rows=N, dtype=several, resume=True) as sink:
            sink.write(sink.next_row, values[sink.next_row :])
            sink.commit()
        found = self.load(target)
        assert found.dtype == dtype
        assert found.tolist() == values.tolist()
        assert leftovers(target) == []
        assert stored_crc32(target, n_rows=N, dtype=several) == sink.crc32
        assert stored_crc32(target, n_rows=N, dtype=np.dtype((dtype, (m + 1,)))) is None

    # ---- names ------------------------------------------------------------------

    def test_output_that_exists(self, target: Path) -> None:
        target.write_text("mine")
        for resume in (False, True):
            with pytest.raises(OutputExistsError, match=r"out.*remove it or choose another"):
                self.open(target, n_rows=N, dtype="int32", resume=resume)
        target.unlink()
        target.symlink_to("nowhere")
        with pytest.raises(OutputExistsError):
            self.open(target, n_rows=N, dtype="int32")

    # Breaks when a file that appears during a run is overwritten by it.
    def test_output_that_appears(self, target: Path) -> None:
        with self.open(target, n_rows=10, dtype="int32") as sink:
            sink.write(0, labels(10))
            target.write_text("mine")
            with pytest.raises(OutputExistsError):
                sink.commit()
        assert target.read_text() == "mine"
        target.unlink()
        with self.open(target, n_rows=10, dtype="int32", resume=True) as sink:
            sink.write(0, labels(10))
            sink.commit()
        assert (self.load(target) == labels(10)).all()

    # Breaks when rows of an older run are taken over into a new one.
    def test_stale_partial_is_replaced(self, target: Path) -> None:
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, labels()[:500])
            sink.write_cursor({"batch": 5})
        assert leftovers(target) == [partial_of(target).name, cursor_of(target).name]
        with self.open(target, n_rows=30, dtype="float32", chunk_rows=CHUNK_ROWS) as sink:
            assert sink.read_cursor() is None
            assert sink.durable_rows == sink.next_row == 0
            sink.write(0, labels(30, "float32"))
            sink.commit()
        assert (self.load(target) == labels(30)).all()
        assert leftovers(target) == []

    # Breaks without a lock: the first would publish the second's half-written file.
    def test_two_writers_of_one_output(self, target: Path) -> None:
        first = self.open(target, n_rows=10, dtype="int32")
        first.write(0, labels(10))
        for resume in (False, True):
            with pytest.raises(RunError, match=r"process \d+ on \S+ is writing this output"):
                self.open(target, n_rows=10, dtype="int32", resume=resume)
        first.commit()
        assert self.load(target).tolist() == labels(10).tolist()

    # Breaks when an output that is not to be resumed is left behind.
    def test_discarding_leaves_nothing(self, target: Path) -> None:
        sink = self.open(target, n_rows=10, dtype="int32")
        sink.write_cursor({})
        assert around(target)
        sink.discard()
        assert not around(target)

    # Breaks when an output that already has its name keeps the other from being completed.
    def test_a_commit_of_two_outputs_that_was_interrupted_is_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = self.place(tmp_path)
        paths = [place / f"labels{self.suffix}", place / f"distances{self.suffix}"]
        sinks = [self.open(path, n_rows=10, dtype="int32") for path in paths]
        for sink in sinks:
            sink.write(0, labels(10))

        def crash() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(sinks[1], "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            commit_together(sinks)
        for sink in sinks:
            sink.close()
        assert paths[0].exists()
        assert not paths[1].exists()
        with pytest.raises(OutputExistsError):
            self.open(paths[0], n_rows=10, dtype="int32")

        sinks = [self.open(path, n_rows=10, dtype="int32", resume=True) for path in paths]
        assert [sink.next_row for sink in sinks] == [10, 10]
        commit_together(sinks)
        assert sorted(around(paths[0])) == sorted(paths)
        # Nothing is left that would let a later run take the complete outputs for its own.
        with pytest.raises(OutputExistsError):
            self.open(paths[0], n_rows=10, dtype="int32", resume=True)

    # ---- going on -----------------------------------------------------------------

    @pytest.mark.parametrize("written", [0, 5, 64, 130, 1000])
    def test_resume(self, target: Path, written: int) -> None:
        values = labels()
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, values[:written])
            sink.flush()
            sink.write_cursor({"row": sink.durable_rows})
            assert sink.read_cursor() == {"row": sink.durable_rows}
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS, resume=True) as sink:
            cursor = sink.read_cursor()
            assert cursor is not None
            row = cursor["row"]
            assert row == sink.durable_rows == sink.next_row
            # A run may only be able to start further back; what is there already stays.
            back = max(0, row - 10)
            sink.write(back, values[back : back + 10])
            sink.write(sink.next_row, values[sink.next_row :])
            sink.commit()
        assert (self.load(target) == values).all()
        assert leftovers(target) == []

    # Breaks when a killed run leaves a cursor that claims more than is on disk, twice over.
    def test_killed_and_resumed_twice(self, target: Path) -> None:
        root = Path(__file__).parents[2]
        rows = []
        for stop in (400, 800):
            more = map(str, self.options(target, N).values())
            command = [sys.executable, "-c", CRASH, str(target), str(stop), *more]
            assert subprocess.run(command, cwd=root, check=False).returncode == 9
            assert not target.exists()
            with self.open(target, n_rows=N, dtype="int32", resume=True) as sink:
                assert sink.read_cursor() == {"row": sink.durable_rows}
                rows.append(sink.durable_rows)
        assert 0 < rows[0] < 437 < rows[1] < 837
        with self.open(target, n_rows=N, dtype="int32", resume=True) as sink:
            sink.write(rows[1], labels()[rows[1] :])
            sink.commit()
        assert (self.load(target) == labels()).all()
        assert leftovers(target) == []

    @pytest.mark.parametrize(
        ("options", "says"),
        [({"n_rows": N + 1}, "1000 rows of int32.*1001"), ({"dtype": "int64"}, "int32.*int64")],
        ids=["another length", "another dtype"],
    )
    @pytest.mark.parametrize("cursor", [False, True])
    def test_resume_of_another_output(
        self, target: Path, options: dict[str, Any], says: str, cursor: bool
    ) -> None:
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, labels()[:200])
            if cursor:
                sink.write_cursor({})
        with pytest.raises(ResumeError, match=says):
            self.open(target, **{"n_rows": N, "dtype": "int32", "resume": True, **options})

    def test_resume_of_nothing(self, target: Path) -> None:
        # A cursor whose rows are gone claims nothing.
        cursor_of(target).write_text('{"durable_rows": 5, "cursor": {}}')
        with self.open(target, n_rows=10, dtype="int32", resume=True) as sink:
            assert sink.read_cursor() is None
            assert sink.next_row == 0
            sink.write(0, labels(10))
            sink.commit()
        assert leftovers(target) == []

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            "{}",
            '{"durable_rows": "5", "cursor": {}}',
            '{"durable_rows": 9999, "cursor": {}}',
        ],
    )
    def test_damaged_cursor(self, target: Path, text: str) -> None:
        self.open(target, n_rows=N, dtype="int32").close()
        cursor_of(target).write_text(text)
        with pytest.raises(ResumeError, match=r"partial\.json.*start again"):
            self.open(target, n_rows=N, dtype="int32", resume=True)

    # Breaks when a crash during creation keeps a run from ever resuming.
    def test_partial_without_a_header(self, target: Path) -> None:
        self.leave_a_beginning(partial_of(target))
        with self.open(target, n_rows=10, dtype="int32", resume=True) as sink:
            sink.write(0, labels(10))
            sink.commit()
        assert (self.load(target) == labels(10)).all()

    # Breaks when claimed rows that are gone are given out as the fill value.
    def test_partial_that_lost_claimed_rows(self, target: Path) -> None:
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, labels()[:200])
            sink.write_cursor({})
        self.lose_rows(partial_of(target))
        with pytest.raises(ResumeError, match=r"\.partial.*start again"):
            self.open(target, n_rows=N, dtype="int32", resume=True)

    # ---- a disk that refuses --------------------------------------------------------

    # Breaks when a failed fsync is tried again: it then succeeds without the rows that were lost.
    def test_failed_flush_is_final(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, labels()[:200])
            with monkeypatch.context() as patch:

                def lost(*_):
                    raise OSError(errno.EIO, "Input/output error")

                patch.setattr(os, "fsync", lost)
                with pytest.raises(OSError, match="Input/output error"):
                    sink.write_cursor({})
            assert sink.durable_rows == 0
            again: list[Callable[[], object]] = [
                sink.flush, lambda: sink.write_cursor({}), lambda: sink.write(200, labels(5)),
            ]  # fmt: skip
            for attempt in again:
                with pytest.raises(OSError, match="earlier write failed"):
                    attempt()
        assert not cursor_of(target).exists()

    # Breaks when the cursor is saved before the rows that it claims.
    def test_rows_are_synced_before_the_cursor(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        sync, replace = os.fsync, os.replace

        def fsync(fd: int) -> None:
            order.append(Path(f"/proc/self/fd/{fd}").readlink().name)
            sync(fd)

        def noted(path: Path, to: Path) -> None:
            if "json" in str(to):
                order.append("cursor")
            replace(path, to)

        with self.open(target, n_rows=N, dtype="int32", chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, labels()[:64])
            monkeypatch.setattr(os, "fsync", fsync)
            monkeypatch.setattr(os, "replace", noted)
            sink.write_cursor({})
        at = order.index("cursor")
        assert tuple(order[: len(self.synced)]) == self.synced
        assert "json" in order[at - 1]
        assert order[at + 1 :] == [cursor_of(target).parent.name]


class PartedSinkContract(SinkContract):
    """Of outputs that several processes write together, each a part."""

    @pytest.fixture(autouse=True)
    def short_spans(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(npy, "SPAN_BYTES", 256)

    def begin(self, target: Path, n_parts: int, **more: Any) -> tuple[Sink, list[Part]]:
        """The sink, and the parts of all processes; the first of them has the sink."""
        options = {"n_rows": N, "dtype": "int32", "chunk_rows": CHUNK_ROWS, **more}
        sink = self.open(target, **options)
        assert isinstance(sink, PartedSink)
        sink.admit_others()
        others = [
            open_part(target, n_rows=N, dtype=options["dtype"], start_row=sink.next_row)
            for _ in range(n_parts - 1)
        ]
        return sink, [sink.part, *others]

    def write_spans(
        self, parts: list[Part], stop: int = N, values: np.ndarray | None = None
    ) -> None:
        """Write the spans up to that of row `stop`, in turn, each in two writes."""
        values = labels() if values is None else values
        row, number = parts[0].next_row, 0
        while row < stop:
            part, end = parts[number % len(parts)], parts[0].span_end(row)
            assert [each.span_end(row) for each in parts] == [end] * len(parts)
            assert [part.span_end(r) for r in range(row, end)] == [end] * (end - row)
            middle = (row + end) // 2
            part.write(row, values[row:middle])
            part.write(middle, values[middle:end])
            row, number = end, number + 1

    def end(self, sink: Sink, parts: list[Part]) -> None:
        """Make known what is written, and close the parts, but for the sink's own."""
        for part in parts[::-1]:
            sink.claim(part.flush())
        sink.write_cursor({})
        for part in parts[1:]:
            part.close()

    # Breaks when the bytes depend on who has written them.
    @pytest.mark.parametrize("n_parts", [1, 2, 3])
    @pytest.mark.parametrize("shape", [(), (1,), (3,), (64,)], ids=str)
    def test_parts_make_the_output_of_one(
        self, tmp_path: Path, n_parts: int, shape: tuple[int, ...]
    ) -> None:
        if shape and not self.takes_several:
            pytest.skip("it has one value a row")
        place = self.place(tmp_path)
        alone, together = (place / f"{name}{self.suffix}" for name in ("a", "b"))
        dtype, values = np.dtype(("int32", shape)), labels(N * prod(shape)).reshape(N, *shape)
        with self.open(alone, n_rows=N, dtype=dtype, chunk_rows=CHUNK_ROWS) as sink:
            sink.write(0, values)
            sink.commit()
        whole = sink.crc32
        sink, parts = self.begin(together, n_parts, dtype=dtype)
        self.write_spans(parts, values=values)
        self.end(sink, parts)
        assert sink.durable_rows == N
        sink.commit()
        assert (self.load(together) == values).all()
        assert sink.crc32 == whole == stored_crc32(together, n_rows=N, dtype=dtype)
        assert set(leftovers(together)) <= {alone.name}

    # Breaks when rows count that another process has not brought to disk, or count twice.
    def test_rows_count_once_those_before_are_there(self, target: Path) -> None:
        sink, parts = self.begin(target, 2)
        self.write_spans(parts, stop=300)
        first, second = (part.flush() for part in parts)
        assert not parts[0].flush()
        sink.claim(second)
        assert sink.durable_rows == 0
        sink.claim(first)
        assert sink.durable_rows == parts[0].span_end(299)
        with pytest.raises(ValueError, match="were written twice"):
            sink.claim(second)
        parts[1].close()
        sink.close()

    # Breaks when what is resumed depends on how many processes there were.
    def test_what_parts_have_written_is_resumed(self, target: Path) -> None:
        reached = 0
        for n_parts, stop in ((3, 300), (1, 700)):
            sink, parts = self.begin(target, n_parts, resume=True)
            assert sink.next_row == reached
            self.write_spans(parts, stop)
            self.end(sink, parts)
            reached, end = sink.durable_rows, parts[0].span_end(stop - 1)
            assert reached == end
            # Written, and never claimed: a process was killed.
            parts[0].write(end, labels()[end : parts[0].span_end(end)])
            parts[0].flush()
            sink.close()
        sink, parts = self.begin(target, 2, resume=True)
        self.write_spans(parts)
        self.end(sink, parts)
        sink.commit()
        assert (self.load(target) == labels()).all()
        assert leftovers(target) == []

    # Breaks when a chunk is stored that another process writes, too.
    def test_rows_are_written_in_order(self, target: Path) -> None:
        sink, parts = self.begin(target, 2)
        self.write_spans(parts, stop=300)
        with pytest.raises(ValueError, match="row 0 comes after row"):
            parts[0].write(0, labels()[:10])
        parts[1].close()
        sink.close()

    # Breaks when a process of an earlier attempt writes into an output that is begun anew.
    def test_nobody_begins_anew_while_a_part_is_open(self, target: Path) -> None:
        sink, parts = self.begin(target, 2)
        sink.discard()
        with pytest.raises(RunError, match=r"process \d+ on \S+ is writing this output"):
            self.open(target, n_rows=N, dtype="int32")
        parts[1].close()
        parts[1].close()
        self.open(target, n_rows=N, dtype="int32").discard()
        assert not around(target)

    def test_a_part_of_another_run_is_refused(self, target: Path) -> None:
        with (
            self.open(target, n_rows=N, dtype="int32"),
            pytest.raises(RunError, match="is writing this output"),
        ):
            open_part(target, n_rows=N, dtype="int32", start_row=0)
