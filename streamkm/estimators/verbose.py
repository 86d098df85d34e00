"""Prints on stdout what scikit-learn's estimators print, for ``verbose``.

The lines are for people and scripts that look for scikit-learn's words in a log. Only what the
run knows is printed: there is no line for an ``ewa inertia`` that is not watched.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from streamkm.clustering.state import BY_MIN_GAIN, BY_NO_IMPROVEMENT, BY_TOL, CONVERGED, RUNNING

if TYPE_CHECKING:
    from streamkm.clustering.state import KMeansState

__all__ = ["PassLines", "StepLines"]


class _Lines:
    """A `Listener` that says nothing but that seeding is over."""

    def after_seeding(self) -> None:
        """See `Listener`."""
        _say("Initialization complete")

    def after_step(self, state: KMeansState, unit: float, n_steps: int) -> None:
        """See `Listener`."""

    def after_pass(self, state: KMeansState, unit: float, epoch: int) -> None:
        """See `Listener`."""


class PassLines(_Lines):
    """The lines of scikit-learn's ``KMeans``: one for each pass."""

    def after_pass(self, state: KMeansState, unit: float, epoch: int) -> None:
        """See `Listener`."""
        _say(f"Iteration {epoch}, inertia {float(state.inertia) / unit**2}.")
        stop = int(state.stop)
        if stop == CONVERGED:
            _say(f"Converged at iteration {epoch}: strict convergence.")
        elif stop == BY_TOL:
            shift, tolerance = (float(x) / unit**2 for x in (state.shift, state.tolerance))
            _say(
                f"Converged at iteration {epoch}: center shift {shift} within tolerance "
                f"{tolerance}."
            )


class StepLines(_Lines):
    """The lines of scikit-learn's ``MiniBatchKMeans``: one for each batch."""

    _is_over = False

    def after_step(self, state: KMeansState, unit: float, n_steps: int) -> None:
        """See `Listener`."""
        if self._is_over:
            return  # A batch that was under way when the run had stopped, and changes nothing.
        step, stop = int(state.n_steps), int(state.stop)
        line = f"Minibatch step {step}/{n_steps}: mean batch inertia: "
        line += f"{float(state.batch_inertia) / unit**2}"
        smoothed = float(state.smoothed_inertia) / unit**2
        if smoothed == smoothed:  # NaN unless it is watched
            line += f", ewa inertia: {smoothed}"
        _say(line)
        if stop == BY_TOL:
            _say(f"Converged (small centers change) at step {step}/{n_steps}")
        elif stop == BY_NO_IMPROVEMENT:
            _say(f"Converged (lack of improvement in inertia) at step {step}/{n_steps}")
        self._is_over = stop != RUNNING

    def after_pass(self, state: KMeansState, unit: float, epoch: int) -> None:
        """See `Listener`."""
        if int(state.stop) == BY_MIN_GAIN:
            _say(f"Converged (small gain of pass {epoch}) at step {int(state.n_steps)}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
