"""Random values at random places of both halves' settings: taken, or refused in one line.

A run that would begin is ended there: what is looked at is everything before its folder is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srd.config.fields import Config
from srd.config.layers import dotted_keys
from tests.resnet.recipes import Command
from tests.resnet.test_guard import ALONE

pytestmark = pytest.mark.slow
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 10**20, -(2**63)]), st.floats(-2, 2),
    st.sampled_from([1e9, 1e-300, 1e300, float("inf"), float("nan"), True, False]),
)  # fmt: skip
WORDS = st.sampled_from(["", "a", "train", "digits/train", "../x", "a\0b", "nan", "auto", "null"])
VALUES = st.recursive(
    st.none() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
FUZZ = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


class Begun(BaseException):
    """A run would begin here."""


def begin(*_: object, **__: object) -> NoReturn:
    raise Begun


@pytest.fixture
def looked_at(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[Callable[[], int]], None]]:
    """Runs a command, which begins, or is refused as it should; at the end, both have happened."""
    outcomes = {"begun": 0, "refused": 0}

    def look(command: Callable[[], int]) -> None:
        capsys.readouterr()
        try:
            code = command()
        except Begun:
            outcomes["begun"] += 1
            return
        told = capsys.readouterr().err
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and "Traceback" not in told, told
        assert told.splitlines()[-1] == errors[0] and len(errors[0]) < 1500, told
        outcomes["refused"] += 1

    yield look
    assert outcomes["refused"] > 400 and outcomes["begun"] > 20, outcomes


def nodes(node: yaml.Node) -> list[tuple[yaml.Node, int]]:
    """Every place in a document: a container and the position in it."""
    places: list[tuple[yaml.Node, int]] = []
    for number, item in enumerate(node.value if not isinstance(node, yaml.ScalarNode) else []):
        places.append((node, number))
        places += nodes(item[1] if isinstance(node, yaml.MappingNode) else item)
    return places


@FUZZ
@given(st.integers(0, 10**6), VALUES | st.just("delete"))
def test_torchdistills_files(
    command: Command,
    looked_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    value: Any,
) -> None:
    monkeypatch.setattr("resnet.train.open_session", begin)
    root = yaml.compose(ALONE, Loader=yaml.SafeLoader)
    container, at = nodes(root)[number % len(nodes(root))]
    if value == "delete":
        del container.value[at]
    else:
        new = yaml.compose(yaml.safe_dump(value), Loader=yaml.SafeLoader)
        mapping = isinstance(container, yaml.MappingNode)
        container.value[at] = (container.value[at][0], new) if mapping else new
    text = yaml.serialize(root, Dumper=yaml.SafeDumper)
    looked_at(lambda: command(text))


@pytest.mark.usefixtures("narrow")
@FUZZ
@given(st.sampled_from(sorted(dotted_keys(Config))), VALUES)
def test_our_settings(
    deit: Callable[..., Any],
    looked_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: Path,
    key: str,
    value: Any,
) -> None:
    monkeypatch.setattr("srd.training.train.open_session", begin)
    monkeypatch.chdir(tmp_path)
    config = json.loads(recipe.read_text())
    inner = config
    *sections, last = key.split(".")
    for name in sections:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            return
    inner[last] = value
    Path("fuzz.yaml").write_text(yaml.safe_dump(config))

    def run() -> int:
        outcome = deit("--train_student", "--config=fuzz.yaml")
        print(outcome.err, end="", file=sys.stderr)
        return int(outcome.code)

    looked_at(run)
