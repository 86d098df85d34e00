"""Launches of a step, remembered, so that the next steps make them again with little Python.

At every launch Triton finds out anew what kernel the arguments ask for: some 20 microseconds, of
which the driver takes 2. Here that is asked once for each kind of step. A kind is told by a key: it
must hold all that decides which kernel is asked for, such as dtypes, lengths, and whether addresses
are multiples of 16. What stays is then launched by its address; what changes is named.
"""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from triton.runtime import driver

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

__all__ = ["Launcher", "Replays"]


class _Launched(NamedTuple):
    run: Callable[..., None]
    grid: tuple[int, ...]
    handles: tuple[Any, ...]
    """The kernel on the device, what Triton says of it, and hooks: none."""
    arguments: list[Any]
    changing: list[tuple[int, str]]
    """Which arguments change, and their names."""


class _Plan(NamedTuple):
    held: tuple[Any, ...]
    launched: list[_Launched]
    arguments: list[tuple[Any, ...]]
    """As they were given: their memory must live as long as its addresses are used."""


class Launcher:
    """Launches kernels, and remembers what it launched while someone records."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, ...]] | None = None

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any
    ) -> None:
        """``kernel[grid](*arguments, **constants)``."""
        compiled = kernel[grid](*arguments, **constants)
        if self.recorded is not None:
            self.recorded.append((compiled, kernel, grid, arguments, constants))


class Replays:
    """What was launched for each kind of step by `launch`."""

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch
        self._plans: dict[Hashable, _Plan] = {}

    def __call__(
        self,
        key: Hashable,
        held: tuple[Any, ...],
        changing: Mapping[str, int],
        make: Callable[[], None],
    ) -> None:
        """Do what `make` does: launch kernels, and nothing else.

        Parameters
        ----------
        key : Hashable
            All that decides which kernels `make` launches, on what grids, with which numbers.
        held : tuple of Tensors
            The tensors that `make` is about: others than the last time are another step.
        changing : mapping
            Numbers and addresses that differ from step to step, by the names of the arguments.
        """
        plan = self._plans.get(key)
        if plan is None or not all(map(is_, held, plan.held)):
            self._record(key, held, changing, make)
            return
        stream = driver.active.get_current_stream(driver.active.get_current_device())
        for run, grid, handles, arguments, places in plan.launched:
            for place, name in places:
                arguments[place] = changing[name]
            run(*grid, stream, *handles, *arguments)

    def _record(
        self,
        key: Hashable,
        held: tuple[Any, ...],
        changing: Mapping[str, int],
        make: Callable[[], None],
    ) -> None:
        before = self._plans.get(key)
        if before is not None:
            # Another state: what is known of the last one would keep its memory.
            self._plans.clear()
        recorded: list[tuple[Any, ...]] = []
        self._launch.recorded = recorded
        try:
            make()
        finally:
            self._launch.recorded = None
        # Triton's interpreter compiles nothing.
        if all(hasattr(compiled, "packed_metadata") for compiled, *_ in recorded):
            launched = [_launched(*each, names=changing) for each in recorded]
            self._plans[key] = _Plan(held, launched, [each[3] for each in recorded])


def _launched(
    compiled: Any,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: Mapping[str, Any],
    *,
    names: Mapping[str, int],
) -> _Launched:
    named = list(kernel.arg_names)
    whole = [*arguments, *(constants[name] for name in named[len(arguments) :])]
    addresses = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in whole]
    return _Launched(
        compiled.run,
        (*grid, 1, 1)[:3],
        (compiled.function, compiled.packed_metadata, None, None, None),
        addresses,
        [(place, name) for place, name in enumerate(named) if name in names],
    )
