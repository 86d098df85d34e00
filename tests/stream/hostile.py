"""A device that is as late, and as early, as its queues and events allow.

Operations of torch on its tensors are queued, like those of a GPU, and the queues are worked off in
an order drawn at random: whatever nothing holds up may come first, and nothing happens before
somebody waits for it. What a program forgets to wait for is therefore missed on some seeds, not on
some machines. Memory is poisoned where a GPU would leave what was there before: when it is
allocated, before a copy fills it, and, of slots of the host, when they are given back.

On a device that is `threaded` each queue has a thread of its own, which honours events and nothing
else, and tarries at random. So copies and kernels truly run beside the host and each other, but no
seed brings the same order again. A device may also be lost: what it does next fails, and all that
follows.

Its tensors call themselves torch's device ``meta``, for which torch needs no driver.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from streamkm import devices, tables
from streamkm.kernels import reference
from streamkm.kernels.ops import distances, ranking
from streamkm.stream import prefetch
from tests.clustering.conftest import HostGenerators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

HOSTILE = torch.device("meta")
#: Seconds that the host waits for an event of a device with threads.
LONGEST_S = 30.0


class LostError(RuntimeError):
    """The device is lost, as CUDA tells whoever waits for it next."""


class HangError(AssertionError):
    """The host waits for what nothing will ever do."""


@dataclass
class Mark:
    """Where an event was recorded last."""

    is_passed: bool = False


class HostileEvent:
    def __init__(self, device: HostileDevice) -> None:
        self.device, self.mark = device, Mark(is_passed=True)

    def record(self, queue: HostileQueue) -> None:
        mark = self.mark = Mark()

        def passes() -> None:
            mark.is_passed = True

        self.device.put(queue, Mark(is_passed=True), passes)

    def synchronize(self) -> None:
        self.device.work_until(self.mark)

    def query(self) -> bool:
        self.device.may_work()
        return self.mark.is_passed

    def elapsed_time(self, end: HostileEvent) -> float:
        assert self.mark.is_passed
        assert end.mark.is_passed
        return 0.0


@dataclass(eq=False)
class HostileQueue:
    """Work with what it waits for, in order; one queue may be far slower than another."""

    device: HostileDevice
    pace: float
    work: deque[tuple[Mark, Callable[[], None]]] = field(default_factory=deque)

    def wait_event(self, event: HostileEvent) -> None:
        self.device.put(self, event.mark, lambda: None)

    def wait_stream(self, other: HostileQueue) -> None:
        event = HostileEvent(self.device)
        event.record(other)
        self.wait_event(event)

    def synchronize(self) -> None:
        event = HostileEvent(self.device)
        event.record(self)
        event.synchronize()


class HostileDevice:
    """See `streamkm.devices.Queues`. Without a seed it does at once what it can: as a CPU would.

    After `n_done` pieces of work it is lost.
    """

    def __init__(
        self, seed: int | None, *, threaded: bool = False, n_done: float = float("inf")
    ) -> None:
        self.draws = random.Random(seed)
        self.laziness = 0.0 if seed is None else self.draws.uniform(0.5, 1)
        """Share of the times that work is queued after which nothing at all is worked off."""
        self.changed = threading.Condition(threading.RLock())
        self.threads: list[threading.Thread] | None = [] if threaded else None
        self.is_open, self.n_left = True, n_done
        self.queues: list[HostileQueue] = []
        self.new()
        self.now = self.queues[0]
        self.locked: dict[int, int] = {}
        self.waits: list[str] = []
        """Modules of the package in which the host has waited for a value, each time."""

    # ---- what the package asks ------------------------------------------------------------

    def current(self) -> HostileQueue:
        return self.now

    def new(self) -> HostileQueue:
        queue = HostileQueue(self, self.draws.choice([1, 50]))
        self.queues.append(queue)
        if self.threads is not None:
            draws = random.Random(self.draws.random())
            self.threads.append(
                threading.Thread(target=self._serve, args=(queue, draws), daemon=True)
            )
            self.threads[-1].start()
        return queue

    def event(self, *, timed: bool = False) -> HostileEvent:
        return HostileEvent(self)

    @contextmanager
    def within(self, queue: HostileQueue) -> Iterator[None]:
        before, self.now = self.now, queue
        try:
            yield
        finally:
            self.now = before

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made = torch.empty(shape, dtype=dtype, device="cpu")
        poison(made)
        self.locked[made.data_ptr()] = made.nbytes
        return made

    def lock(self, buffer: np.ndarray) -> str:
        self.locked[buffer.ctypes.data] = buffer.nbytes
        return ""

    def unlock(self, buffer: np.ndarray) -> None:
        is_over = self.n_left < 0 or not any(queue.work for queue in self.queues[1:])
        assert is_over, "a copy may not be over"
        del self.locked[buffer.ctypes.data]

    def synchronize(self) -> None:
        for queue in self.queues:
            queue.synchronize()

    # ---- how it works off what is queued --------------------------------------------------

    def is_locked(self, tensor: torch.Tensor) -> bool:
        """Whether copies reach `tensor` of the host beside the host's own work."""
        at = tensor.data_ptr()
        return any(start <= at < start + size for start, size in self.locked.items())

    def put(self, queue: HostileQueue, after: Mark, work: Callable[[], None]) -> None:
        """Queue `work`, which comes `after` a mark of another queue."""
        with self.changed:
            queue.work.append((after, work))
            self.changed.notify_all()
            self.may_work()

    def enqueue(self, work: Callable[[], None]) -> None:
        self.put(self.now, Mark(is_passed=True), work)

    def may_work(self) -> None:
        """Work off as much as chance will have, of one queue after another."""
        if self.threads is not None:
            return
        with self.changed:
            while self.draws.random() >= self.laziness and self._work(self.draws.randrange(1, 30)):
                pass

    def work_until(self, mark: Mark) -> None:
        with self.changed:
            if self.threads is not None:
                self.changed.wait_for(lambda: mark.is_passed or self.n_left < 0, LONGEST_S)
            while self.threads is None and not mark.is_passed and self._work(1):
                pass
            if self.n_left < 0:
                raise LostError("the device is lost")
            if not mark.is_passed:
                raise HangError("the host waits for an event that nothing reaches")

    def wait_for_value(self) -> None:
        within = [f.filename for f in traceback.extract_stack() if "/streamkm/" in f.filename]
        self.waits += [Path(name).stem for name in within[-1:]]
        self.now.synchronize()

    def close(self) -> None:
        """Let the threads end; what is queued is done before, unless the device is lost."""
        if self.n_left >= 0:
            self.synchronize()
        with self.changed:
            self.is_open = False
            self.changed.notify_all()
        for thread in self.threads or ():
            thread.join(LONGEST_S)
            assert not thread.is_alive()

    def _serve(self, queue: HostileQueue, draws: random.Random) -> None:
        """Body of the thread of a queue."""

        def is_ready() -> bool:
            return not self.is_open or bool(queue.work and queue.work[0][0].is_passed)

        while True:
            with self.changed:
                self.changed.wait_for(is_ready)
                if not self.is_open or self._is_lost():
                    return
                work = queue.work[0][1]
            if draws.random() < 0.004 * queue.pace:
                time.sleep(draws.random() * 1e-3)
            work()
            with self.changed:
                queue.work.popleft()
                self.changed.notify_all()

    def _is_lost(self) -> bool:
        """Count a piece of work; whether the device is lost before it."""
        self.n_left -= 1
        if self.n_left < 0:
            self.changed.notify_all()
        return self.n_left < 0

    def _work(self, most: int) -> int:
        """Work off at most so many entries of one queue; how many those were."""
        ready = [queue for queue in self.queues if queue.work and queue.work[0][0].is_passed]
        if not ready:
            return 0
        (queue,), done = self.draws.choices(ready, [queue.pace for queue in ready]), 0
        while done < most and queue.work and queue.work[0][0].is_passed:
            if self._is_lost():
                return 0
            queue.work.popleft()[1]()
            done += 1
        return done


class OnDevice(torch.Tensor):
    """A tensor whose values, in `there`, are not there yet for all that the host knows."""

    there: torch.Tensor

    @staticmethod
    def __new__(cls, there: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, there.shape, strides=there.stride(), storage_offset=there.storage_offset(),
            dtype=there.dtype, device=HOSTILE,
        )  # fmt: skip
        made.there = there
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} after the device was closed")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Hostile(TorchDispatchMode):
    """Queues every operation on tensors of the device."""

    def __init__(self, device: HostileDevice) -> None:
        super().__init__()
        self.device = device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Its import takes seconds.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = tree_leaves((args, kwargs))
        asked, tensors = kwargs.get("device"), [t for t in given if isinstance(t, torch.Tensor)]
        uses = any(isinstance(t, OnDevice) for t in tensors)
        if not uses and (asked is None or torch.device(asked) != HOSTILE):
            return func(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        name = func._schema.name
        if name in ("aten::_to_copy", "aten::copy_"):
            return self._copy(name, args, kwargs, asked)
        for tensor in tensors:
            if asked is None and not isinstance(tensor, OnDevice) and tensor.dim():
                raise RuntimeError(f"{func}: a tensor of the host among those of the device")
        returned = [r.alias_info for r in func._schema.returns]
        if returned and all(alias is not None and not alias.is_write for alias in returned):
            return tree_map(_wrapped, func(*tree_map(_there, args), **tree_map(_there, kwargs)))
        # What 0-dimensional tensors of the host hold is handed over at the launch.
        args, kwargs = tree_map(_snapshot, (args, kwargs))
        return self._launch(func, args, kwargs)

    def _launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        values, named = tree_map(_there, args), tree_map(_there, kwargs)
        if any(isinstance(value, torch.Generator) for value in tree_leaves(kwargs)):
            made = func(*values, **named)  # Draws follow one another as the host asks for them.
            return tree_map(_wrapped, made)
        if any(r.alias_info is not None for r in func._schema.returns):
            self.device.enqueue(lambda: func(*values, **named))
            outs = [
                kwargs.get(a.name, args[i] if i < len(args) else None)
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return outs[0] if len(func._schema.returns) == 1 else tuple(outs)
        try:
            shapes = func(*tree_map(_shape_of, values), **_on_meta(named))
        except (NotImplementedError, RuntimeError):
            # How much comes out depends on values: the host waits.
            self.device.wait_for_value()
            return tree_map(_wrapped, func(*values, **named))
        outs = tree_map(_memory_like, shapes)
        if "empty" in func._schema.name:  # What was there before may be in use yet.
            self.device.enqueue(lambda: poison(outs))
            return _wrapped(outs)
        self.device.enqueue(lambda: _fill(outs, func(*values, **named)))
        return tree_map(_wrapped, outs)

    def _copy(self, name: str, args: Any, kwargs: Any, asked: Any) -> Any:
        """Copies: only from and to page-locked memory does the host not wait."""
        if name == "aten::copy_":
            to, given = args[:2]
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            given = args[0]
            waits = not kwargs.pop("non_blocking", False)
            dtype, is_there = kwargs.get("dtype") or given.dtype, asked is None
            made = torch.empty_like(_there(given), dtype=dtype, device="cpu")
            is_there = is_there or torch.device(asked) == HOSTILE
            to = OnDevice(made) if is_there else made
        source, target, device = _there(given), _there(to), self.device
        if not isinstance(given, OnDevice):
            if waits or not device.is_locked(given):
                source = given.clone()
            if name == "aten::copy_":
                device.enqueue(lambda: poison(target))
            device.enqueue(lambda: target.copy_(source))
            return to
        device.enqueue(lambda: target.copy_(source))
        if not isinstance(to, OnDevice) and (waits or not device.is_locked(to)):
            device.wait_for_value()
        return to


class Numbers(TorchFunctionMode):
    """Tensors of numbers are made on the host: torch makes none of those of ``meta``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == HOSTILE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(HOSTILE)
        return func(*args, **kwargs)


def poison(tensor: torch.Tensor) -> None:
    """Fill with what no test can overlook: NaN, or numbers far from all others."""
    if tensor.dtype.is_floating_point:
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


def _there(value: Any) -> Any:
    return value.there if isinstance(value, OnDevice) else value


def _wrapped(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, torch.Tensor) else value


def _snapshot(value: Any) -> Any:
    is_of_host = isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)
    return value.clone() if is_of_host else value


def _shape_of(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    named = tree_map(_shape_of, kwargs)
    return {**named, "device": HOSTILE} if "device" in named else named


def _memory_like(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    poison(made)
    return made


def _fill(outs: Any, values: Any) -> None:
    for out, value in zip(tree_leaves(outs), tree_leaves(values), strict=True):
        if isinstance(out, torch.Tensor):
            out.copy_(value)


@contextmanager
def hostile_device(
    monkeypatch: pytest.MonkeyPatch, seed: int | None, **options: Any
) -> Iterator[HostileDevice]:
    """The device, whatever device is asked for, while the ``with`` block lasts."""
    device = HostileDevice(seed, **options)
    releaser = prefetch._Readers._releaser

    def poisoning(readers: Any, buffer: np.ndarray) -> Callable[[], None]:
        release = releaser(readers, buffer)

        def poison_and_release() -> None:
            buffer.fill(0xFF)
            release()

        return poison_and_release

    with monkeypatch.context() as patch:
        patch.setattr(prefetch._Readers, "_releaser", poisoning)
        patch.setitem(devices.QUEUES, HOSTILE.type, lambda _: device)
        patch.setattr("streamkm.clustering.reservoir.torch", HostGenerators())
        for module in ("streamkm.runs.fit", "streamkm.runs.engine.labelling"):
            patch.setattr(f"{module}.resolve_device", lambda *_: HOSTILE)
        for table in (
            reference.TILE_BYTES, distances.TILE_ELEMENTS, ranking.TILE_SCORES, ranking.PAIRS
        ):  # fmt: skip
            patch.setitem(table, HOSTILE.type, table["cpu"])
        entry = tables.KERNELS["reference"]
        patch.setitem(tables.KERNELS, "reference", replace(entry, devices=(HOSTILE.type,)))
        with Hostile(device), Numbers():
            try:
                yield device
            finally:
                device.close()
