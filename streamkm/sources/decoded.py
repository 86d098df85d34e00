"""Reads stored numbers as what they stand for: NaN for "no data", and scaled values.

The attributes are those of the CF conventions, as netCDF, xarray and GDAL write them:
``_FillValue`` and ``missing_value`` say which stored values are no data, ``scale_factor`` and
``add_offset`` what a stored number means. Values are compared as they are stored, before any
widening. Integers are widened to the least float that holds them (float32 up to 16 bits, else
float64), because they have no NaN; floats keep their type.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import struct
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.sources.base import Described
from streamkm.sources.beside import beside_of
from streamkm.sources.concat import parts_of
from streamkm.sources.ids import ids_of
from streamkm.sources.layout import check_read
from streamkm.sources.names import in_order
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from streamkm.sources.base import ArraySpec, RowRange, Source
    from streamkm.sources.beside import BesideColumns
    from streamkm.sources.concat import Part
    from streamkm.sources.ids import IdColumn

__all__ = [
    "AS_STORED",
    "DecodedSource",
    "Decoding",
    "Marks",
    "decoded",
    "decoded_alike",
    "honoured",
    "read_marks",
]

#: Elements that are decoded at a time, so that they stay in the cache.
PIECE_ELEMENTS = 32 << 10
#: Bytes of the copies of a piece: as stored, compared, and converted.
_PIECE_BYTES = PIECE_ELEMENTS * (8 + 8 + 2)
#: NaN in bfloat16.
_BFLOAT16_NAN = 0x7FC0


@dataclass(frozen=True, slots=True)
class Marks:
    """What the attributes of an array say of its stored values."""

    nodata: tuple[float | int, ...] = ()
    """Values that are no data, without NaN and without those that its type cannot hold."""
    source: str = ""
    """Names of the attributes that they come from."""
    scale: float = 1.0
    """``scale_factor``; NaN if it is several numbers."""
    offset: float = 0.0
    """``add_offset``; NaN likewise."""
    are_unsigned: bool = False
    """Whether signed integers stand for unsigned ones of the same bits: ``_Unsigned``."""

    @property
    def are_scaled(self) -> bool:
        """Whether stored numbers mean others."""
        return self.scale != 1 or self.offset != 0 or self.are_unsigned


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the user wants stored values to be read."""

    nodata: tuple[float | int, ...] = ()
    """Values that are no data, as the user gives them."""
    fill_is_nan: bool | tuple[float | int, ...] = False
    """Whether values that attributes mark are no data too; or those that are, where none do."""
    apply_scale: bool = False
    """Whether ``scale_factor`` and ``add_offset`` are applied."""


#: Every value as it is stored.
AS_STORED = Decoding()


def read_marks(attributes: Mapping[str, Any], dtype: str, fill_value: Any = None) -> Marks:
    """The marks in the attributes of an array.

    Parameters
    ----------
    attributes : mapping
        Its attributes; values may be numbers, arrays, or text, as xarray writes floats to Zarr.
    dtype : str
        Its element type, a key of `DTYPES`.
    fill_value : number, optional
        A further mark, named ``fill_value``: that of a Zarr array of format 2 by xarray.
    """
    named = {name: attributes.get(name) for name in ("_FillValue", "missing_value")}
    named["fill_value"] = fill_value
    # As netCDF 3 and programs after it store unsigned integers, for which it has no types.
    are_unsigned = _is_true(attributes.get("_Unsigned")) and dtype.startswith("int")
    found: dict[float | int, str] = {}
    for name, given in named.items():
        for value in _numbers(given):
            bits = _stored(value, f"u{dtype}") if are_unsigned else None
            whole = value if bits is None else np.array(bits, f"u{dtype}").astype(dtype).item()
            stored = _stored(whole, dtype)
            if stored is not None and stored not in found:
                found[stored] = name
    return Marks(
        tuple(found),
        " and ".join(dict.fromkeys(found.values())),
        _one_number(attributes.get("scale_factor"), 1.0),
        _one_number(attributes.get("add_offset"), 0.0),
        are_unsigned,
    )


def decoded(
    make: Callable[[tuple[str, ...]], Source], marks: Marks, how: Decoding, name: str
) -> Source:
    """The source that `make` returns for some remarks, read as `how` says.

    Parameters
    ----------
    make : callable
        Opens the stored numbers; its argument are notes on marks that are not applied.
    marks : Marks
        What the attributes say.
    how : Decoding
        What the user says.
    name : str
        The source, for the notes.

    Raises
    ------
    SourceError
        If values are to be scaled, and the attributes have no single number for it.
    """
    remarks = []
    nodata = how.nodata
    marked: tuple[float | int, ...] = ()
    if how.fill_is_nan:
        marked = marks.nodata or _stand_ins(how.fill_is_nan)
    elif left := [value for value in marks.nodata if value not in nodata]:
        values = " and ".join(map(_shown, left))
        remarks.append(
            f"{name}: {marks.source} marks {values} as no data, and rows that hold it are "
            "clustered as they are; --nan drop leaves them out"
        )
    if not math.isfinite(marks.scale + marks.offset):
        several = f"{name}: scale_factor or add_offset in its attributes is no single finite number"
        if how.apply_scale:
            raise SourceError(
                f"{several}, so it cannot be applied; leave out ",
                Option("apply_scale"),
                ", or write a scaled copy",
            )
        remarks.append(f"{several}, and not applied")
    elif how.apply_scale and not marks.are_scaled:
        remarks.append(
            f"{name}: --apply-scale scales nothing: its attributes have no scale_factor and no "
            "add_offset"
        )
    elif marks.are_scaled and not how.apply_scale:
        remarks.append(
            f"{name}: {'_Unsigned, ' * marks.are_unsigned}scale_factor {marks.scale:g} and "
            f"add_offset {marks.offset:g} stand in its attributes and are not applied; "
            "--apply-scale applies them"
        )
    scaled = how.apply_scale and marks.are_scaled
    source = make(tuple(remarks))
    if not nodata and not marked and not scaled:
        return source
    scale, offset = (marks.scale, marks.offset) if scaled else (1.0, 0.0)
    unsigned = scaled and marks.are_unsigned
    return DecodedSource(
        source, nodata, marked=marked, scale=scale, offset=offset, unsigned=unsigned
    )


def honoured(
    source: Source,
    nodata: tuple[float | int, ...] = (),
    fill_is_nan: bool | tuple[float | int, ...] = False,
) -> Source:
    """`source`, with NaN for `nodata` and for the values that its `ArraySpec.nodata` names.

    If it names none, the values of `fill_is_nan` stand in for them.
    """
    marked = () if source.spec.nodata else _stand_ins(fill_is_nan)
    if not source.spec.is_decoded:
        # Values of before would be looked for among those that they have become.
        nodata = (*source.spec.nodata, *nodata)
    return DecodedSource(source, nodata, marked=marked) if nodata or marked else source


def _stand_ins(fill_is_nan: bool | tuple[float | int, ...]) -> tuple[float | int, ...]:
    """The values that are no data where no attribute marks any."""
    return () if isinstance(fill_is_nan, bool) else fill_is_nan


def decoded_alike(parts: Sequence[Source]) -> list[Source]:
    """The shards `parts`, all of floats if some are for the sake of their no data.

    A program may leave out ``_FillValue`` where a file has no such pixel. Whether numbers are
    scaled is no such detail: shards that differ in it keep the types by which they are refused.
    """
    specs = [part.spec for part in parts]
    if not any(spec.is_decoded for spec in specs) or any(spec.is_scaled for spec in specs):
        return list(parts)
    are_plain = [
        not spec.is_decoded and _wide(spec.dtype, scaled=False) != spec.dtype for spec in specs
    ]
    return [
        DecodedSource(part, ()) if is_plain else part
        for part, is_plain in zip(parts, are_plain, strict=True)
    ]


class DecodedSource(Described):
    """A source whose values that are no data are NaN, and whose numbers are scaled.

    Parameters
    ----------
    source : Source
        The stored numbers; closed with this one.
    nodata : iterable of numbers
        Stored values that are no data. Those that the type cannot hold are left out, with a note.
    marked : iterable of numbers
        More of them, which only attributes name.
    scale, offset : float
        A stored number ``s`` is read as ``s * scale + offset``.
    unsigned : bool
        Whether signed integers are taken for unsigned ones of the same bits before that.
    """

    def __init__(
        self,
        source: Source,
        nodata: Iterable[float | int],
        *,
        marked: Iterable[float | int] = (),
        scale: float = 1.0,
        offset: float = 0.0,
        unsigned: bool = False,
    ) -> None:
        spec = source.spec
        by_user = tuple(nodata)
        given = tuple(dict.fromkeys((*by_user, *marked)))
        pairs = [(value, _stored(value, spec.dtype)) for value in given]
        self._source = source
        self._given = tuple(value for value in given if value == value)  # without NaN
        self._nodata = tuple(stored for _, stored in pairs if stored is not None)
        self._impossible = [value for value, stored in pairs if stored is None and value == value]
        self._scale, self._offset = scale, offset
        self._unsigned = unsigned
        self._is_scaled = scale != 1 or offset != 0 or unsigned
        self._spec: ArraySpec = replace(
            spec,
            dtype=_wide(spec.dtype, scaled=self._is_scaled),
            scratch_bytes=spec.scratch_bytes + _PIECE_BYTES,
            # Also those that this type has not: another file or variable may have them.
            nodata=tuple(dict.fromkeys((*spec.nodata, *self._given))),
            marked=tuple(v for v in self._given if v not in by_user) or spec.marked,
            is_decoded=True,
            is_scaled=self._is_scaled or spec.is_scaled,
        )

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """Shape and layout of the stored numbers, with the type of those that are read."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=False)
        flat = out.reshape(-1)
        # The stored numbers are never wider, so they fit at the end of `out`. Widening from the
        # front on then overwrites only those that were widened before.
        stored = flat.view(self._source.spec.storage)[-flat.size or 0 :][: flat.size]
        self._source.read(rows, stored.reshape(out.shape))
        with np.errstate(all="ignore"):
            for start in range(0, flat.size, PIECE_ELEMENTS):
                piece = slice(start, start + PIECE_ELEMENTS)
                self._decode(stored[piece].copy(), flat[piece])

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view with the features in the order of `names`."""
        source = in_order(self._source, names, self.name)
        view = copy(self)
        scratch = source.spec.scratch_bytes + _PIECE_BYTES
        spec = replace(self._spec, feature_names=names, scratch_bytes=scratch)
        vars(view).update(_source=source, _spec=spec)
        return view

    def parts(self) -> list[Part]:
        """The files of the stored array, if it has several."""
        return parts_of(self._source)

    def fingerprint(self) -> str:
        """Hex digest of the stored numbers' fingerprint and of how they are read."""
        how = f"{self._nodata} {self._scale!r} {self._offset!r}{' unsigned' * self._unsigned}"
        return hashlib.sha256(f"{how} {self._source.fingerprint()}".encode()).hexdigest()

    def ids(self) -> IdColumn | None:
        """The ids of the stored array, if it has any."""
        return ids_of(self._source)

    def beside(self) -> BesideColumns | None:
        """The columns that are no features, if it is a table."""
        return beside_of(self._source)

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the stored array."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the stored numbers, and how they are read."""
        notes = self._source.notes()
        if self._nodata:
            values = " or ".join(map(_shown, self._nodata))
            notes.append(f"{self.name}: {values} is no data: a row that holds it counts as NaN")
        if self._impossible:
            values = " and ".join(map(_shown, self._impossible))
            stored = self._source.spec.dtype
            notes.append(f"{self.name}: no row holds {values} as no data, {stored} has no such")
        if self._is_scaled:
            notes.append(
                f"{self.name}: values are stored{' as unsigned' * self._unsigned} * "
                f"{self._scale:g} + {self._offset:g}, as its attributes say"
            )
        return notes

    def close(self) -> None:
        """Close the stored numbers."""
        self._source.close()

    def _decode(self, stored: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` from a copy of its stored numbers."""
        dtype = self._source.spec.dtype
        values = (
            (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored
        )
        missing = None
        for value in self._nodata:
            is_it = values == values.dtype.type(value)
            missing = is_it if missing is None else np.logical_or(missing, is_it, out=missing)
        if self._spec.dtype == "bfloat16":
            if missing is not None:
                np.putmask(out, missing, _BFLOAT16_NAN)
            return
        out[:] = values.view(f"u{dtype}") if self._unsigned else values
        if self._is_scaled:
            out *= self._scale
            out += self._offset
        if missing is not None:
            np.putmask(out, missing, np.nan)


def _wide(dtype: str, *, scaled: bool) -> str:
    """The element type that numbers of `dtype` are read as."""
    if dtype in ("float16", "bfloat16"):
        return "float32" if scaled else dtype
    if dtype in ("float32", "float64"):
        return dtype
    return "float32" if dtype in ("int8", "uint8", "int16", "uint16") else "float64"


def _is_true(given: Any) -> bool:
    text = given.decode("ascii", "replace") if isinstance(given, bytes) else str(given)
    return text.lower() == "true"


def _one_number(given: Any, default: float) -> float:
    """The number in the value of an attribute, which may be repeated; NaN if there are several."""
    found = set(_numbers(given))
    if not found:
        return default
    return float(found.pop()) if len(found) == 1 else math.nan


def _numbers(given: Any) -> list[float | int]:
    """The numbers in the value of an attribute; none if it is something else."""
    if given is None:
        return []
    if isinstance(given, bytes):
        given = given.decode("ascii", "replace")
    if isinstance(given, str):
        return _from_text(given)
    try:
        values = np.asarray(given).reshape(-1)
    except ValueError:
        return []
    if values.dtype.kind not in "iuf":
        return []
    return [value.item() for value in values]


def _from_text(given: str) -> list[float | int]:
    """A number as text, or a float64 in base64, as xarray writes it to Zarr of format 3."""
    try:
        return [float(given)]
    except ValueError:
        pass
    try:
        raw = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return []
    return [struct.unpack("<d", raw)[0]] if len(raw) == 8 else []


def _stored(value: float | int, dtype: str) -> float | int | None:
    """`value` as numbers of `dtype` hold it; None if they do not, or if it is NaN."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if dtype == "bfloat16":
        bits = int(np.float32(value).view(np.uint32))
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return float(np.uint32(rounded << 16).view(np.float32))
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            near = float(kind.type(value))
        return near if math.isfinite(near) or not math.isfinite(value) else None
    if not math.isfinite(value) or value != int(value):
        return None
    info = np.iinfo(kind)
    return int(value) if info.min <= value <= info.max else None


def _shown(value: float | int) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
