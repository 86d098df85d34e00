"""Says what to install where the packages of the extra ``report`` are missing."""

from __future__ import annotations

import importlib

from streamkm.errors import InputError

__all__ = ["need_packages"]

#: Packages that reports are made with, by the name that they are imported by; pillow first, which
#: matplotlib needs too.
PACKAGES = ("PIL", "matplotlib", "jinja2")


def need_packages() -> None:
    """Raise `InputError` unless every package of `PACKAGES` can be imported."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"a report is made with matplotlib, jinja2 and pillow, and {name} cannot be "
                f'imported ({error}); install them: pip install "streamkm[report]"'
            ) from error
