"""Texts of others: what is shown of them, in a terminal, in Markdown and in JSON."""

from __future__ import annotations

import json

import pytest

from srd.errors import UserError, exit_code
from srd.printable import as_code, as_json, as_markdown, printable

FOUL = "x\n\n# INJECTED\n\n<img src=x onerror=alert(1)>\x1b[2J\u202e\ud800"


@pytest.mark.parametrize("text", ["grüße", "犬 🐕", "नमस्\u200dते", "a  b", "n02123045", "\u00a0"])
def test_what_people_write_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text and json.loads(as_json(text)) == text and text in as_json(text)


def test_hidden_characters_are_written_out() -> None:
    assert printable("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"
    assert printable(FOUL).isprintable()


def test_json_hides_nothing_and_means_the_same() -> None:
    value = {FOUL: [FOUL, 1, None], "b": "\U000e0001"}
    text = as_json(value)
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))


def test_markdown_reads_like_the_text() -> None:
    assert (
        as_markdown("regnety_160.deit_in1k, top-1 71.5 %") == "regnety_160.deit_in1k, top-1 71.5 %"
    )
    shown = as_markdown(FOUL + "[a](http://b) ![c](d) **e** `f` @g www.h.i |")
    for mark in ("\n", "<img", "](", "://", "www.", "@"):
        assert mark not in shown.replace("\\]", ""), mark
    assert "\\*\\*e\\*\\*" in shown and "\\`f\\`" in shown and "\\|" in shown


def test_a_block_of_code_ends_where_it_should() -> None:
    block = as_code("a: |\n  ```\n  # INJECTED\n", "yaml")
    assert block == "````yaml\na: |\n  ```\n  # INJECTED\n````\n"


def test_an_error_shows_what_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("no class \x1b[2J\u202e\nline two")

    assert exit_code(fail) == 2
    assert capsys.readouterr().err == "error: no class \\x1b[2J\\u202e\nline two\n"
