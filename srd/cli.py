"""Command lines that name the nearest valid flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn

from srd.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def parse_strictly(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    fields: Callable[[], Iterable[str]] = tuple,
) -> argparse.Namespace:
    """The flags; an unknown one is a UserError that names the nearest.

    Args:
        fields: of the configuration, which --set sets; they are searched, too.
    """
    missing: UserError | None = None
    try:
        known, unknown = parser.parse_known_args(arguments)
    except UserError as error:  # a misspelt flag that is required is told as that, not as missing
        missing, needed = error, [action for action in parser._actions if action.required]
        for action in needed:
            action.required = False
        try:
            known, unknown = parser.parse_known_args(arguments)
        finally:
            for action in needed:
                action.required = True
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"unknown argument {flag}: no value is expected there")
        flags = [option for action in _actions(parser) for option in action.option_strings]
        bare = flag.lstrip("-").replace("-", "_")
        typo = get_close_matches(flag, flags, cutoff=0.8)
        # a typing error is told at once: the fields import torch
        named = [] if typo else [key for key in fields() if key.rpartition(".")[2] == bare]
        hint = f" (did you mean '--set {named[0]}=...'?)" if named else nearest(flag, flags)
        raise UserError(f"unknown argument {flag}{hint}")
    if missing:
        raise missing
    return known


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All flags, those of subcommands included."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
