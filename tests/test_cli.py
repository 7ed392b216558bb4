"""A mistake on a command line is a UserError that names the nearest flag."""

from __future__ import annotations

import pytest

from srd.cli import Parser, parse_strictly
from srd.errors import UserError


def parser() -> Parser:
    parser = Parser(prog="main.py", allow_abbrev=False)
    parser.add_argument("--batch-size", "--batch_size")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    return parser


@pytest.mark.parametrize("arguments", [["--batch-size", "8"], ["--batch_size=8"]])
def test_known_flags(arguments: list[str]) -> None:
    assert parse_strictly(parser(), arguments).batch_size == "8"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--bach-size", "8"], "unknown argument --bach-size (did you mean '--batch-size'?)"),
        (["--bach-size=8"], "unknown argument --bach-size (did you mean '--batch-size'?)"),
        (["--batch", "8"], "unknown argument --batch"),
        (["extra"], "unknown argument extra"),
        (["--device", "tpu"], "--device"),
        (["--batch-size"], "--batch-size"),
    ],
    ids=str,
)
def test_unknown_flags_and_values(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        parse_strictly(parser(), arguments)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_a_misspelt_flag_that_is_required_is_told_as_that() -> None:
    strict = parser()
    strict.add_argument("--config", required=True)
    with pytest.raises(UserError, match=r"--confg \(did you mean '--config'"):
        parse_strictly(strict, ["--confg=x"])
    with pytest.raises(UserError, match="--config"):
        parse_strictly(strict, [])


def test_fields_are_searched_too() -> None:
    said = r"unknown argument --clip_norm \(did you mean '--set optim\.clip_norm=\.\.\.'\?\)"
    with pytest.raises(UserError, match=said):
        parse_strictly(parser(), ["--clip_norm=3"], lambda: ["optim.lr", "optim.clip_norm"])
