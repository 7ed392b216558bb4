"""The console command: `srd NAME ARGUMENTS` calls what is registered under NAME.

Commands are entry points of the group "srd.commands" (pyproject.toml): functions that take the list
of arguments, and raise what `srd.errors.exit_code` turns into exit codes. Their modules import torch
late, when the arguments have been read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from srd.errors import UserError, exit_code, nearest
from srd.installed import registered, version
from srd.libraries import leave

Command = Callable[[Sequence[str]], None]

USAGE = """\
usage: srd COMMAND [ARGUMENT ...]
       srd COMMAND --help
       srd --version

{commands}"""
# What one may ask for, and is only in a checkout.
SCRIPTS = {
    "demo": "demo.sh",
    "test": "test.sh",
    "chaos": "chaos.py",
    "fetch-checkpoints": "fetch_checkpoints.py",
    "evaluate-released": "evaluate_released.py",
}


def main() -> NoReturn:
    """The process of the command line, to its end."""
    leave(exit_code(lambda: run(sys.argv[1:])))


def run(arguments: Sequence[str]) -> None:
    """Call the command that the first argument names with the others.

    Raises:
        UserError: no such command; and whatever the command raises.
    """
    name, *others = arguments or ["--help"]
    if name in ("-h", "--help", "--version") and others:
        raise UserError(f"unknown argument {others[0]} after {name}")
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"srd {version()}")
    else:
        find_command(name)(others)


def find_command(name: str) -> Command:
    """The command called `name`.

    Raises:
        UserError: there is none (with the nearest), or it is a script.
    """
    commands = registered("srd.commands")
    if name in commands:
        command: Command = commands[name].load()
        return command
    if (script := SCRIPTS.get(name.replace("_", "-"))) is not None:
        raise UserError(f"{name} is no command but a script, scripts/{script}, of a checkout")
    known = ", ".join(commands)
    raise UserError(f"unknown command {name}{nearest(name, commands)}: one of {known}")


def usage() -> str:
    """How to call it, and a line on each command."""
    commands = registered("srd.commands")
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {first_line(entry.load())}" for name, entry in commands.items()]
    return USAGE.format(commands="\n".join(lines))


def first_line(command: Command) -> str:
    """Of its docstring."""
    return (command.__doc__ or "").strip().partition("\n")[0]
