"""Refuses a command or option that there is not, and names the one that was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

__all__ = ["check_options", "flag_before"]


def check_options(
    argv: Sequence[str],
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
) -> None:
    """Refuse a command or option that there is not, and name the one that was probably meant.

    argparse suggests none, and complains of a missing one before it comes to the wrong one.
    """
    command = ""
    for word in argv:
        name = word.partition("=")[0]
        if word in ("--", "-h", "--help"):
            return
        # A word with a space, or with one dash, is left to argparse: it may be a value.
        if command and name.startswith("--") and " " not in word:
            if name not in _options_of(commands[command]):
                advice = _advice(name, commands, command)
                commands[command].error(f"{command} has no option {name}{advice}")
        elif not command and word in commands:
            command = word
        elif not command and not word.startswith("-"):
            near = difflib.get_close_matches(word, commands, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"
            parser.error(f"there is no command {word}; {advice}")
        elif not command and word.startswith("-") and name not in _options_of(parser):
            parser.error(f"{name} before the command: options follow it, as in fit x.npy --k 8")


def _advice(name: str, commands: Mapping[str, argparse.ArgumentParser], command: str) -> str:
    """A phrase that names the commands with this option, or the options most like it, or ``""``."""
    having = [other for other in commands if name in _options_of(commands[other])]
    if having:
        named = " and ".join(filter(None, (", ".join(having[:-1]), having[-1])))
        return f", {named} {'have' if len(having) > 1 else 'has'}"
    known = sorted(_options_of(commands[command]))
    near = [option for option in known if option.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def flag_before(
    word: str, argv: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]
) -> str:
    """A phrase if `word` was given as the value of an option that takes none here, or ``""``."""
    command, flag = argv[0], argv[argv.index(word) - 1]
    if command not in commands or not flag.startswith("--") or "=" in flag:
        return ""
    having = [
        other
        for other, parser in commands.items()
        if re.search(f"^  {flag} [A-Z{{]", parser.format_help(), re.MULTILINE)
    ]
    elsewhere = f", that of {', '.join(having)} does" if having else ""
    return f"the {flag} of {command} takes no value{elsewhere}"


def _options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of `parser`, read from its help: argparse has no public list of them."""
    text = re.sub("\x1b\\[[0-9;]*m", "", parser.format_help())  # Python 3.14 colours its help.
    heads = re.findall("^  (-.*?)(?:  |$)", text, re.MULTILINE)
    return {option for head in heads for option in re.findall("(?<![\\w-])--?[a-z][a-z-]*", head)}
