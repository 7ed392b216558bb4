"""Texts that others wrote, made fit to be shown: in a terminal, in Markdown, in JSON."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

# Zero-width characters without which Persian, Indian scripts and emoji are not written.
JOINERS = "\u200c\u200d"
# What Markdown reads as more than a letter: inside a word, an underscore is only that.
MARKS = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: str) -> str:
    """`text` on one line, with everything that is no visible character or space written out.

    A control character could move a terminal's cursor or change its colours, and others turn the
    direction of what follows: they become `\\x1b`, `\\n`, `\\u202e`.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """`text` with its own line breaks, each line as `printable` makes it."""
    return "\n".join(map(printable, text.split("\n")))


def _shown(character: str) -> str:
    fine = character.isprintable() or character in JOINERS
    if fine or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def as_markdown(text: str) -> str:
    """`text` as Markdown that reads like it: on one line, without mark-up, HTML, links or mentions."""
    escaped = MARKS.sub(r"\\\g<0>", html.escape(printable(text), quote=False))
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def as_code(text: str, language: str) -> str:
    """`text` in a block of Markdown that nothing in it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable_lines(text.rstrip())}\n{fence}\n"


def as_json(value: Any) -> str:
    """`value` as JSON for people, its texts readable and without hidden characters."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(_without_hidden(line) for line in text.split("\n"))


def _without_hidden(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if _shown(c) == c else json.dumps(c)[1:-1] for c in line)
