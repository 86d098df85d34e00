"""A folder with one record, which one process at a time may write: a sweep's, a partition's.

The record is a sealed JSON file that says what the folder is of. It is written before anything
else, so that whoever goes on can compare, and again when there is more to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from streamkm.errors import InputError, Option, OutputExistsError, RunError
from streamkm.files import (
    FileLock,
    discard,
    is_folder,
    make_directory,
    names_in,
    read_bytes,
    remove_empty,
    write_atomically,
)
from streamkm.sealed import DAMAGE, in_words, seal, unseal

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["RecordFolder"]

LOCK = "lock"


class RecordFolder(ABC):
    """The folder, which this process alone may write to within its ``with`` block."""

    file: ClassVar[str]
    """Name of the record."""
    noun: ClassVar[str]
    """What the folder is."""
    option: ClassVar[str]
    """The setting that names the folder."""
    anew: ClassVar[str]
    """What can be done, in another folder, if the record is damaged."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """What may lie there before anything is made."""

    def __init__(self, path: Path, record: dict[str, Any], before: dict[str, Any] | None) -> None:
        """`before` is the record that goes on; `record` must agree with it."""
        self.path, self.record, self._before = path, record, before
        self._lock = self._lock_of(path)
        if before is not None:
            self._check(before)

    @classmethod
    def _lock_of(cls, path: Path) -> FileLock:
        return FileLock(path / LOCK, path, f"working on this {cls.noun}")

    @classmethod
    def owner(cls, path: Path) -> str | None:
        """Who works on the folder, or None."""
        return cls._lock_of(path).owner()

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """The record in the folder `path`; `RunError` if it cannot be used."""
        try:
            record = unseal(read_bytes(path / cls.file))
            cls._look_for_keys(record)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{path} is no {cls.noun}: it has no {cls.file}; name a folder that a {cls.noun} "
                "has written"
            ) from None
        except DAMAGE as error:
            raise RunError(
                f"{path / cls.file} is damaged: {in_words(error)}; restore it from a copy, or "
                f"{cls.anew} another ",
                Option(cls.option),
            ) from None
        return record

    @classmethod
    def check_is_free(cls, path: Path, *, resume: bool) -> dict[str, Any] | None:
        """The record to `resume` in `path`; None if one can begin there.

        Raises
        ------
        InputError
            If `path` is in use, or holds something else.
        """
        option = Option(cls.option)
        if is_folder(path) is False:
            raise OutputExistsError(f"{path} exists and is no folder; choose another ", option)
        names = names_in(path)
        if cls.file in names:
            if resume:
                return cls.read(path)
            raise OutputExistsError(
                f"{path} exists; add ", Option("resume", value=True),
                " to go on with it, or choose another ", option,
            )  # fmt: skip
        if set(names) - {LOCK, f".{cls.file}.tmp"}:
            raise OutputExistsError(f"{path} exists and is no {cls.noun}; choose another ", option)
        return None

    def __enter__(self) -> Self:
        make_directory(self.path)
        self._lock.take()
        try:
            if self._before is None:
                # Again: it may have appeared before this process held the lock.
                self.check_is_free(self.path, resume=False)
            if self._before is None or self._extends(self._before):
                self.write()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What was refused before anything was made leaves no folder.
        left = set(names_in(self.path)) - {self.file, LOCK, *self.scratch}
        if isinstance(error, InputError) and self._before is None and not left:
            discard(*(self.path / name for name in (*self.scratch, self.file)))
            self._lock.release(remove=True)
            remove_empty(self.path)
        self._lock.release()

    def write(self, **more: Any) -> None:
        """Write the record, with `more` of it."""
        self.record |= more
        write_atomically(self.path / self.file, seal(self.record))

    @staticmethod
    @abstractmethod
    def _look_for_keys(record: dict[str, Any]) -> None:
        """Raise what a missing key raises if `record` lacks one that is relied on."""

    @abstractmethod
    def _check(self, before: dict[str, Any]) -> None:
        """Raise a `ResumeError` if the record is not of what `before` is."""

    def _extends(self, before: dict[str, Any]) -> bool:
        """Whether the record has more than `before`, and is to be written at once."""
        del before
        return False
