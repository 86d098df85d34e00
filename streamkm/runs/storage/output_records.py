"""Which outputs of predict are finished: a record of each in the folder of the run that made it.

Whose labels they are is not written in them: an ``.npy`` file has no room for it, and a file
beside every output would be litter where people keep their data. The run's folder is ours. A
record is believed of the very values that it was written for, which their checksum tells.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from streamkm.errors import Option, OutputExistsError
from streamkm.files import make_directory, read_bytes, write_atomically
from streamkm.sealed import DAMAGE, seal, unseal
from streamkm.sinks import check_target, stored_crc32

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np

    from streamkm.sinks import Sink

__all__ = ["are_finished", "check_free", "may_be_finished", "record_outputs"]

OUTPUTS = "outputs"


def record_outputs(run_dir: Path, job: dict[str, str], sinks: Iterable[Sink]) -> OSError | None:
    """Note in `run_dir` what `sinks` hold now that all is written; the reason if that cannot be.

    Before they get their names, so that a crash leaves none that is finished and unknown.
    """
    try:
        make_directory(run_dir / OUTPUTS)
        for sink in sinks:
            record = _record(sink.path, sink.n_rows, sink.dtype, sink.crc32, job)
            write_atomically(_place(run_dir, sink.path), seal(record))
    except OSError as error:
        return error
    return None


def may_be_finished(run_dir: Path, targets: list[Path]) -> bool:
    """Whether all are there and noted in `run_dir`, whatever has become of them."""
    return all(path.exists() and _place(run_dir, path).exists() for path in targets)


def are_finished(
    run_dir: Path, job: dict[str, str], outputs: list[tuple[Path, np.dtype[Any]]], n_rows: int
) -> bool:
    """Whether every one is whole, and what `job` makes of these rows by the run in `run_dir`."""
    if not may_be_finished(run_dir, [path for path, _ in outputs]):
        return False
    for path, dtype in outputs:
        try:
            noted = unseal(read_bytes(_place(run_dir, path)))
        except (OSError, *DAMAGE):
            return False
        crc32 = noted.get("crc32")
        if noted != _record(path, n_rows, dtype, crc32, job):
            return False
        if stored_crc32(path, n_rows=n_rows, dtype=dtype) != crc32:
            return False
    return True


def check_free(run_dir: Path, targets: list[Path], *, resume: bool) -> None:
    """Refuse what cannot be begun, or gone on with, as `open_sink` does."""
    for target in targets:
        try:
            check_target(target, resume=resume)
        except OutputExistsError:
            if not resume:
                raise
            raise OutputExistsError(
                f"{target}: exists already, and is nothing that ",
                Option("resume", value=True),
                f" can go on with: {run_dir} has no record that all that is asked for is finished, "
                "by this model, of this source; remove it or choose another name",
            ) from None


def _place(run_dir: Path, target: Path) -> Path:
    """Where the record of `target` lies: by its place, as names may be the same."""
    return run_dir / OUTPUTS / f"{sha256(str(target.resolve()).encode()).hexdigest()[:16]}.json"


def _record(
    target: Path, n_rows: int, dtype: np.dtype[Any], crc32: object, job: dict[str, str]
) -> dict[str, object]:
    output = {"output": str(target.resolve()), "rows": n_rows, "dtype": dtype.name}
    return {**output, "crc32": crc32, **job}
