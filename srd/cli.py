"""Command lines that name the nearest valid flag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NoReturn

from srd.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def parse_strictly(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; an unknown one is a UserError that names the nearest."""
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = [option for action in _actions(parser) for option in action.option_strings]
        raise UserError(f"unknown argument {flag}{nearest(flag, flags)}")
    return known


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All flags, those of subcommands included."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
