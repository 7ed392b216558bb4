"""YAML that somebody else wrote: refused in a second, with its line, and never a traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from srd.config.documents import MOST_BYTES, MOST_DEPTH, load, read_text
from srd.config.layers import read_yaml
from srd.errors import UserError

TENS = ", ".join(["*a{0}"] * 10)


def unfolding(levels: int, first: str, each: str) -> str:
    """Aliases that stand for ten of the line above, each."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {each.format(TENS.format(i - 1))}" for i in range(1, levels + 1)]
    return "\n".join(lines)


TOO_MUCH = {
    "brackets": "a: " + "[" * 3000,
    "braces": "a: " + "{" * 3000,
    "dashes": "- " * 3000,
    "question marks": "? " * 3000,
    "values": "a: [" + "1, " * 30_000 + "]",
    "lists that unfold": unfolding(8, "[" + "1, " * 10 + "]", "[{}]"),
    "merges that unfold": unfolding(8, "{{a: 1, b: 2}}".format(), "{{<<: [{}]}}"),
    "aliases that deepen": "a0: &a0 [1]\n"
    + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)),
}
WRONG = {
    "a: !!int abc": "line 1 is not YAML: this is no int",
    "a: !import_call {}": "files are read by resnet/image_classification.py",
    "a: !!int ''": "no int",
    "a: !!bool maybe": "no bool",
    "a: !!float x": "no float",
    "a: !!timestamp x": "no timestamp",
    "a: 2024-02-31": "no timestamp",
    "a: " + "1" * 200: "no int",
    "a: 1\n? [1, 2]\n: 3": "line 2: a list or a mapping cannot be a key",
    "a: 1\n{b: c}: 3": "line 2: a list or a mapping cannot be a key",
    "a: 1\nb: 2\na: 3": "line 3: the key 'a' stands there twice",
    "a: &a [1, *a]": "line 1: this value contains itself",
    "a: &a {b: {<<: *a}}": "line 1: this value contains itself",
    "a: *nowhere": "undefined alias",
    "<<: 3": "expected a mapping",
    'a: "\\ud800"': "line 1 is not YAML",
    'a: "\\UFFFFFFFF"': "line 1 is not YAML",
    "%YAML 1." + "9" * 5000 + "\n--- 1": "line 1 is not YAML",
    "a: \x01": "not YAML",
    "--- 1\n--- 2": "another document",
    "a: !!python/object/apply:os.system [touch OWNED]": "tag",
    "a: !!python/name:os.system ''": "tag",
    "%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system ''": "tag",
    "!!python/name:os.system '': 1": "tag",
    "a: !<tag:yaml.org,2002:python/module:antigravity> ''": "tag",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_file_that_asks_for_too_much_is_refused_at_once(name: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"^x, line \d+: too much"):
        load(TOO_MUCH[name], "x")
    assert time.process_time() - began < 20  # machines differ


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_a_wrong_value_is_one_line_with_its_place(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(text, "x")
    assert WRONG[text] in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_aliases_and_merges_within_the_limits_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n"
    a = {"x": 1, "y": [1, 2]}
    assert load(text, "x") == {"a": a, "b": {"x": 3, "y": [1, 2]}, "c": [a, a]}
    deepest = "[" * (MOST_DEPTH - 1) + "]" * (MOST_DEPTH - 1)
    assert load(deepest, "x") == yaml.safe_load(deepest)
    assert load("", "x") is None


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="is no file"):
            read_text(path)
    for path in (tmp_path, "a\0b", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="cannot read"):
            read_text(path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("#" * (MOST_BYTES + 1))
    with pytest.raises(UserError, match="longer than"):
        read_yaml(path)
    path.write_text("#" * MOST_BYTES)
    assert read_yaml(path) == {}


TOKENS = st.sampled_from(
    ["- ", ": ", "? ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "\n", "  ", "'", '"', "|\n",
     ">\n", "#", "%YAML ", "--- ", "!!int ", "!!set ", "!!omap ", "!!pairs ", "!!binary ", "!!python/",
     "=", "!!timestamp ", "!", "\t", "0x", ".inf", "1:2:3", "\\", "~", "null", "a", "é"]
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(TOKENS | st.text(max_size=3), max_size=40).map("".join))
@settings(max_examples=5000, deadline=2000)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        load(text, "x")
    except UserError as error:
        assert "\n" not in str(error)
