"""Settings: a field is an option, a key of --config, a line of the help and a check."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import streamkm
from streamkm.cli import _parse, _parsers
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import ConfigError
from streamkm.options import configured
from streamkm.settings import (
    Setting,
    config_class,
    finite,
    matching,
    one_of,
    setting,
    setting_of,
    settings_of,
    whole,
)
from streamkm.tables import ALGORITHMS, KERNELS

EVERY = [
    pytest.param(config, each, id=each.name)
    for config in (FitConfig, ExecutionConfig)
    for each in settings_of(config)
]

#: What else must be given for a setting to be taken.
NEEDED = {"branching": ("algorithm", "tree")}
#: One of these is a value of each setting that is no flag and takes more than a few names.
TEXTS = ("7", "0.5", "random", "cpu", "5m", "1GiB")


def other_value(each: Setting) -> tuple[str, Any]:
    """A value that is not the default: as it is typed, and as it is read."""
    if each.parse is None:
        return str(not each.default).lower(), not each.default
    for text in (*reversed(each.rule.choices), *TEXTS):
        with suppress(ValueError):
            value = each.parse(text)
            each.check(value)
            if value != each.default:
                return text, value
    raise AssertionError(f"none of TEXTS is a value of {each.name}: add one that is")


def typed(each: Setting, text: str) -> list[str]:
    """The words of the command line that give a setting the value `text`."""
    if each.parse is None:
        return [each.flag if text == "true" else each.flag.replace("--", "--no-")]
    return [each.flag, text]


def help_of(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "10000")
    return _parsers()[1][command].format_help()


# Breaks when a setting is declared and one of the places that read declarations leaves it out.
@pytest.mark.parametrize(("config", "each"), EVERY)
class TestEverySetting:
    def test_is_an_option(self, config: type[Any], each: Setting) -> None:
        text, value = other_value(each)
        k = [] if each.name == "k" else ["--k", "9"]
        name, needed = NEEDED.get(each.name, ("seed", "0"))
        k += [] if each.name == name else [f"--{name}", needed]
        arguments = _parse(["fit", "x.npy", "--out", "run", *k, *typed(each, text)])
        assert getattr(configured(config, arguments), each.name) == value

    def test_is_a_key_of_a_file(self, config: type[Any], each: Setting, tmp_path: Path) -> None:
        text, value = other_value(each)
        k = "" if each.name == "k" else "k = 9\n"
        if each.name in NEEDED:
            k += '{} = "{}"\n'.format(*NEEDED[each.name])
        written = text if each.parse in (None, int, float) else json.dumps(text)
        (tmp_path / "run.toml").write_text(f"{k}{each.flag.removeprefix('--')} = {written}\n")
        arguments = _parse(["fit", "x.npy", "--out", "run", "--config", str(tmp_path / "run.toml")])
        assert getattr(configured(config, arguments), each.name) == value

    def test_is_in_the_help_of_its_commands_alone(
        self, config: type[Any], each: Setting, monkeypatch
    ) -> None:
        for command in ("fit", "predict", "evaluate", "info"):
            line = f"  {' '.join(each.help.split())}\n"
            has = command != "info" and each.is_of(command)
            assert (line in help_of(command, monkeypatch)) == has
        if not each.is_required:
            assert "(default: " in each.help

    def test_has_a_default_that_keeps_its_rule(self, config: type[Any], each: Setting) -> None:
        given = {} if config is ExecutionConfig else {"k": 2}
        value = getattr(config(**given), each.name)
        each.check(value)
        assert value == (2 if each.is_required else each.default)


# ---- one field ---------------------------------------------------------------

FIELD = """
    patience: int = setting(
        "how long to wait for nothing", default=2, rule=whole(1), metavar="DAYS"
    )
"""


# A new option of fit is one field, and nothing else: here of a copy of the package.
def test_a_field_is_all_that_an_option_needs(tmp_path: Path) -> None:
    package = Path(streamkm.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "native")
    shutil.copytree(package, tmp_path / "streamkm", ignore=ignored)
    config = tmp_path / "streamkm" / "config.py"
    before, after = config.read_text().split("    seed: int = setting(")
    config.write_text(f"{before.rstrip()}{FIELD}    seed: int = setting({after}")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
    (tmp_path / "run.toml").write_text("k = 2\npatience = 3\n")

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "streamkm", *arguments], cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip

    assert "--patience DAYS       how long to wait for nothing (default: 2)" in (
        ran("fit", "--help").stdout
    )
    refused = ran("fit", "x.npy", "--k", "2", "--out", "run", "--patience", "0")
    assert refused.stderr == ("streamkm: --patience must be a whole number of at least 1, not 0\n")
    done = ran("fit", "x.npy", "--config", "run.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["fit"]["patience"] == 3
    again = ran("fit", "x.npy", "--k", "2", "--out", "run", "--resume")
    assert "patience: 3 -> 2" in again.stderr


# ---- what follows from a declaration -----------------------------------------


@config_class
class Example:
    must: int = setting("what must be given", short="-m")
    name: Literal["one", "two"] = setting("a name", default="one")
    flag: bool = setting("a flag", default=False)
    share: float | None = setting("a share", default=None, shown="all", rule=finite(0))
    place: Path = setting("a place", default=Path("here"), commands=("fit", "predict"))


def test_parts_that_are_not_declared_follow_from_the_type() -> None:
    name, flag, share, place = (setting_of(Example, n) for n in ("name", "flag", "share", "place"))
    assert name.rule.choices == ("one", "two")
    assert (name.parse, flag.parse, share.parse, place.parse) == (str, None, float, Path)
    assert [each.is_open for each in settings_of(Example)] == [False, False, False, True, False]
    assert [each.is_required for each in settings_of(Example)] == [True] + [False] * 4
    assert setting_of(Example, "must").commands == ("fit",)


def test_the_help_names_the_default() -> None:
    assert [each.help for each in settings_of(Example)] == [
        "what must be given",
        "a name (default: one)",
        "a flag (default: no)",
        "a share (default: all)",
        "a place (default: here)",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("must", "2", "must must be of type int, not '2'"),
        ("name", "three", "name must be one of one, two, not 'three'"),
        ("name", None, "name must be one of one, two, not None"),
        ("flag", 1, "flag must be true or false, not 1"),
        ("share", -0.5, "share must be a finite number of at least 0, not -0.5"),
        ("place", "there", "place must be of type Path, not 'there'"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        setting_of(Example, name).check(value)
    assert str(caught.value).endswith(message)
    assert f"--{name}" in caught.value.for_command_line


def test_an_open_setting_may_be_none() -> None:
    setting_of(Example, "share").check(None)
    with pytest.raises(TypeError, match="must"):
        Example()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (whole(2), [2, 10**30], [1, 2.0, True, "2", None]),
        (finite(0), [0, 0.0, 1.5, 10**400], [-1e-9, float("nan"), float("inf"), True, "1", None]),
        (one_of("a", "b"), ["a", "b"], ["c", "", None, ["a"]]),
        (matching("x+", "some x"), ["x", "xxx"], ["", "xy", "x\n", None]),
    ],
    ids=["whole", "finite", "one of", "matching"],
)
def test_rules(rule: Any, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not rule.admits(value)] == []
    assert [value for value in bad if rule.admits(value)] == []


# ---- tables ------------------------------------------------------------------


# Breaks when an algorithm or a kernel is added to its table and cannot be chosen.
def test_choices_are_the_lines_of_the_tables() -> None:
    assert setting_of(FitConfig, "algorithm").rule.choices == tuple(ALGORITHMS)
    assert setting_of(FitConfig, "algorithm").default == next(iter(ALGORITHMS))
    assert set(setting_of(ExecutionConfig, "kernel").rule.choices) == {"auto", *KERNELS}


def test_defaults_of_an_algorithm_are_told() -> None:
    told = {name: setting_of(FitConfig, name).shown for name in ("epochs", "tol")}
    assert told["epochs"].startswith("1 for minibatch, 100 for lloyd")
    assert told["tol"].startswith("off for minibatch, 0.0001 for lloyd")
    assert FitConfig(k=1).closes
    assert not FitConfig(k=1, closing_pass=False).closes
    assert not FitConfig(k=1, algorithm="lloyd").closes
