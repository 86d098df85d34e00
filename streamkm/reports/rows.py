"""Opens the rows of a run, or others, for a report; or says why they are not there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamkm.errors import ConfigError, InputError, StreamkmError
from streamkm.reports.examples import Shown, read_rows
from streamkm.reports.theme import clean
from streamkm.reports.values import column_values, open_values
from streamkm.runs.storage.run_folder import choice_of, reading_of
from streamkm.sources import ids_of, open_source

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from streamkm.reports.facts import RunFacts
    from streamkm.reports.profiles import ImageShape
    from streamkm.reports.values import RowValues
    from streamkm.sources import IdColumn, Source

__all__ = ["OpenedRows", "open_rows", "shown_by"]


@dataclass(frozen=True)
class OpenedRows:
    """The source of a report, or the reason why it has none."""

    source: Source | None
    location: Any = None
    options: Mapping[str, Any] | None = None
    """As `streamkm.sources.open_source` got them."""
    why_not: str = ""
    """A sentence; empty if there is a source."""
    is_other: bool = False
    """Whether these are other rows than those of the fit."""

    def close(self) -> None:
        """Close the source, if there is one."""
        if self.source is not None:
            self.source.close()

    def with_column(self, column: str) -> Source:
        """The source once more, with `column` for its ids."""
        assert self.source is not None
        options = dict(self.options or {})
        if options.get("columns") is None and self.source.spec.feature_names:
            # Else a column that `id_column` named before would count as a feature.
            options["columns"] = list(self.source.spec.feature_names)
        try:
            return open_source(self.location, **{**options, "id_column": column})
        except TypeError as error:
            raise ConfigError(f"{self.source.name}: {error}") from error


def open_rows(
    facts: RunFacts, location: Any, options: Mapping[str, Any], *, wanted: bool
) -> OpenedRows:
    """The rows at `location`, or where the run says that its rows were.

    Parameters
    ----------
    facts : RunFacts
        The run.
    location : object or None
        Anything that `streamkm.sources.open_source` takes; None for what the run was made of.
    options : mapping
        Options of `open_source`; what is not given is as in the run.
    wanted : bool
        Whether rows are to be read at all.

    Raises
    ------
    InputError
        If `location` is given and cannot be opened. Where the run names it, a reason is returned.
    """
    if not wanted:
        return OpenedRows(None, why_not="Rows were not read, as was asked for.")
    if facts.model is None:
        return OpenedRows(None, why_not="Rows are read once the run is finished.")
    reading = reading_of(facts.record)
    marked = () if options.get("nodata") else reading["marked"]
    given = dict(options)
    for name in ("nodata", "apply_scale"):
        given[name] = given.get(name) or reading[name]
    given["fill_is_nan"] = marked or reading["nan"] == "drop"
    of_others = dict(given)
    if location is not None:
        source = open_source(location, **given)
        if _is_of_fit(source, facts):
            return OpenedRows(source, location, given)
        # Perhaps it has the rows of the fit among others, which the fit left out.
        given |= choice_of(facts.record)
        with suppress(InputError):
            chosen = open_source(location, **given)
            if _is_of_fit(chosen, facts):
                source.close()
                return OpenedRows(chosen, location, given)
            chosen.close()
        return OpenedRows(source, location, of_others, is_other=True)
    location = facts.record["source"]
    given |= choice_of(facts.record)
    remedy = f"name it: streamkm report {facts.path} SOURCE"
    try:
        source = open_source(location, **given)
        is_of_fit = _is_of_fit(source, facts)
    except (StreamkmError, OSError) as error:
        said = clean(getattr(error, "for_command_line", error))
        why = f"The rows are not there to be read ({said}); {remedy}."
        return OpenedRows(None, why_not=why)
    if not is_of_fit:
        source.close()
        why = f"{location} is not, or no longer, the data of the fit; if it is, {remedy}."
        return OpenedRows(None, why_not=why)
    return OpenedRows(source, location, given)


def _is_of_fit(source: Source, facts: RunFacts) -> bool:
    return bool(source.fingerprint() == facts.record["data"].get("fingerprint"))


class _OfIds:
    """The ids that the source was opened with."""

    def __init__(self, ids: IdColumn, folder: Path) -> None:
        self._ids, self.folder = ids, folder

    def at(self, rows: Collection[int]) -> dict[int, str]:
        """See `streamkm.reports.values.RowValues`."""
        return column_values(self._ids, rows)


def shown_by(
    opened: OpenedRows, given: Mapping[str, Any], shape: ImageShape | None,
    limits: tuple[float, float], folder: Path,
) -> Shown:  # fmt: skip
    """How rows are shown.

    Parameters
    ----------
    opened : OpenedRows
        The rows.
    given : mapping
        What the user has given for ``ids``, ``texts`` and ``image_files``; None for nothing.
    shape : ImageShape or None
        How a row is an image.
    limits : tuple of float
        The values that are black and white in images.
    folder : Path
        Where relative names of files begin, if a column holds them.
    """
    source = opened.source
    if source is None:
        return Shown()
    n_rows = source.spec.n_rows
    values: dict[str, RowValues | None] = {}
    for option, what in given.items():
        values[option] = (
            None if what is None else open_values(option, what, n_rows, opened.with_column)
        )
    ids = ids_of(source)
    if values.get("ids") is None and ids is not None:
        values["ids"] = _OfIds(ids, folder)

    def draw(rows: dict[int, int]) -> dict[int, str]:
        assert shape is not None
        found = read_rows(source, rows)
        return {row: shape.address(found[row], *limits) for row in rows}

    draws = None if shape is None else draw
    return Shown(**values, draw=draws, choice=source.spec.choice)
