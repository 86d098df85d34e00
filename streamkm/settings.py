"""Settings as fields of a dataclass: the option, the help and the check are made from the field.

A field of `streamkm.config.FitConfig` or `ExecutionConfig` has a name, a type and a default as in
any dataclass. `setting` adds the rest: a text for the help, the rule that a value must keep, and
the commands that have the option. The command line, ``--config`` and the checks read them with
`settings_of`, so that a new setting is one field. ``Annotated`` types were rejected, because mypy
does not check their metadata.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from streamkm.errors import ConfigError, Option

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EVERY_COMMAND",
    "FLAG",
    "Rule",
    "Setting",
    "config_class",
    "finite",
    "matching",
    "one_of",
    "setting",
    "setting_of",
    "settings_of",
    "whole",
]

T = TypeVar("T")

#: Stands for the names of all commands that have settings of a class.
EVERY_COMMAND = ("*",)


# ---- rules -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values a setting may have."""

    text: str
    """What an error says after "must be"."""
    admits: Callable[[Any], bool]
    """Whether a value keeps the rule."""
    choices: tuple[str, ...] = ()
    """The values, if they are a few names; else empty."""


def whole(least: int) -> Rule:
    """Whole numbers from `least` on."""
    return Rule(
        f"a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def finite(least: float, below: float = math.inf) -> Rule:
    """Numbers from `least` on and below `below`, never infinity or NaN."""
    return Rule(
        f"a finite number of at least {least}"
        + (f" and below {below}" if below < math.inf else ""),
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and least <= value < below
        ),
    )


def one_of(*choices: str) -> Rule:
    """One of a few names."""
    return Rule(
        f"one of {', '.join(choices)}",
        lambda value: isinstance(value, str) and value in choices,
        choices,
    )


def matching(pattern: str, text: str) -> Rule:
    """Strings that `pattern` matches from end to end; `text` describes them."""
    return Rule(text, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


#: The rule of every bool.
FLAG = Rule("true or false", lambda value: isinstance(value, bool))


# ---- declaring ---------------------------------------------------------------


@overload
def setting(
    text: str,
    *,
    default: T,
    shown: str = ...,
    rule: Rule = ...,
    parse: Callable[[str], Any] = ...,
    metavar: str = ...,
    commands: tuple[str, ...] = ...,
) -> T: ...
@overload
def setting(
    text: str,
    *,
    rule: Rule = ...,
    parse: Callable[[str], Any] = ...,
    metavar: str = ...,
    short: str = ...,
    commands: tuple[str, ...] = ...,
) -> Any: ...
def setting(text: str, *, default: Any = MISSING, **more: Any) -> Any:
    """Declare a field of a class of settings.

    Parameters
    ----------
    text : str
        What the setting is, for the help, which adds the default.
    default : object, optional
        As of `dataclasses.field`. A setting without a default must be given. None leaves the
        setting open: it is decided later, and passes every rule.
    shown : str, optional
        How the help names the default; by default its value.
    rule : Rule, optional
        Which values are allowed. By default the type decides: true or false for a bool, one of
        the names of a Literal, else an instance of the type.
    parse : callable, optional
        Turns the text of an option into a value; by default the type.
    metavar : str, optional
        The name of the value in the help; by default the option's, in capitals.
    short : str, optional
        A second name of the option, such as ``-k``.
    commands : tuple of str, optional
        The commands that have the option; by default ``fit`` alone. `EVERY_COMMAND` stands for
        all that ask for settings of this class.

    Returns
    -------
    dataclasses.Field
        For the body of a `config_class`; its type is that of `default` to type checkers.
    """
    return field(default=default, metadata={"text": text, **more})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def config_class(cls: type[T]) -> type[T]:
    """Make `cls`, whose fields are settings, a frozen dataclass built by keyword."""
    return dataclass(frozen=True, kw_only=True)(cls)


# ---- reading declarations ----------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting as declared by `setting`, with all that follows from its type."""

    name: str
    default: Any
    rule: Rule
    parse: Callable[[str], Any] | None
    """None for a flag, which takes no value."""
    is_open: bool
    """Whether the value may be None, "decide later"."""
    text: str
    shown: str = ""
    metavar: str | None = None
    short: str = ""
    commands: tuple[str, ...] = ("fit",)

    def is_of(self, command: str) -> bool:
        """Whether `command` has the option."""
        return self.commands == EVERY_COMMAND or command in self.commands

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return Option(self.name).flag

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @property
    def help(self) -> str:
        """The text of its option: what it is, and its default."""
        if self.is_required:
            return self.text
        shown = self.shown or str(self.default)
        if isinstance(self.default, bool):
            shown = "yes" if self.default else "no"
        return f"{self.text} (default: {shown})"

    def check(self, value: object) -> None:
        """Raise `ConfigError` if `value` breaks the rule."""
        if not (value is None and self.is_open) and not self.rule.admits(value):
            raise ConfigError(Option(self.name), f" must be {self.rule.text}, not {value!r}")


#: Answers of `settings_of`, kept because `partial_fit` asks for every batch.
_KNOWN: dict[type[Any], tuple[Setting, ...]] = {}


def settings_of(config: type[Any]) -> tuple[Setting, ...]:
    """All settings of a `config_class`, in the order of its fields."""
    if config not in _KNOWN:
        hints = get_type_hints(config)
        _KNOWN[config] = tuple(_completed(part, hints[part.name]) for part in fields(config))
    return _KNOWN[config]


def setting_of(config: type[Any], name: str) -> Setting:
    """The setting `name` of a `config_class`."""
    return next(setting for setting in settings_of(config) if setting.name == name)


def _completed(declared: Field[Any], hint: Any) -> Setting:
    """The setting that a field declares; its type fills in the parts that were left out."""
    is_open = NoneType in get_args(hint)
    kind = next(part for part in get_args(hint) if part is not NoneType) if is_open else hint
    is_named = get_origin(kind) is Literal
    if is_named:
        rule = one_of(*get_args(kind))
    elif kind is bool:
        rule = FLAG
    else:
        rule = Rule(f"of type {kind.__name__}", lambda value: isinstance(value, kind))
    parse = str if is_named else None if kind is bool else kind
    parts = {"rule": rule, "parse": parse, **declared.metadata}
    return Setting(name=declared.name, default=declared.default, is_open=is_open, **parts)
