"""Ends a pass over rows in sequence, in all processes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.runs.engine.agreement import Agreement
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.runs.reporting.signals import stopped_by
from streamkm.sources.base import RowRange

if TYPE_CHECKING:
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources.base import Source
    from streamkm.stream.plan import Place

__all__ = ["Watch"]


class Watch:
    """Ends a pass that has nothing to save: after a signal, or for rows that are not finite.

    All processes raise the same error, whichever got the signal or met such a row.
    """

    def __init__(
        self, source: Source, nan: str, world: World, stop_request: StopRequest | None = None
    ) -> None:
        self._source, self._nan, self._world = source, nan, world
        self._stop_request, self._agreement = stop_request, Agreement(world)
        self._bad: tuple[int, int, int] | None = None

    def after(self, place: Place, n_dropped: int) -> None:
        """Go on from `place`, of whose rows this process has dropped `n_dropped`; or raise."""
        if n_dropped and self._nan == "error" and self._bad is None:
            self._bad = (place.start_row, place.start_row + place.n_rows, n_dropped)
        if not place.ends_round:
            return
        asked = None if self._stop_request is None else self._stop_request.signal_name
        stop = asked is not None or self._bad is not None
        if self._agreement.after_step(stop=stop, due=False)[0]:
            self._end(asked)

    def finish(self) -> None:
        """Raise if any process has met a row that is not finite since the last look."""
        self._agreement.finish()
        self._end(None)

    def _end(self, asked: str | None) -> None:
        everybody = self._world.gather((asked, self._bad))
        bad = [tuple(found) for _, found in everybody if found is not None]
        if bad:
            # Before the first of them every batch is known to be clean.
            start, stop, n_dropped = min(bad)
            raise non_finite_error(self._source, n_dropped, within=RowRange(start, stop))
        names = [name for name, _ in everybody if name is not None]
        if names:
            raise stopped_by(names[0])
