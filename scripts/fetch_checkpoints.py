"""Fetch the released weights: `python scripts/fetch_checkpoints.py [NAME ...] [--list] [--to DIR]`.

Without names, everything that has a stable address. Broken downloads go on where they were, and a
file appears only when it is whole and checked. What lies on a cloud drive has to be fetched by
hand; the script says from where, and where to put it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from srd.cli import Parser, parse_strictly
from srd.errors import RunFailed, UserError, exit_code, nearest
from srd.files.download import download
from srd.files.hashes import sha256
from srd.files.released import RELEASED, Released
from srd.files.weights import load_weights

CKPTS = Path(__file__).resolve().parent.parent / "ckpts"


def run(arguments: Sequence[str]) -> None:
    """Fetch what was asked for.

    Raises:
        UserError: an unknown name. RunFailed: a download failed (the others are done first).
    """
    parser = Parser(prog="fetch_checkpoints.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as --list shows them")
    parser.add_argument("--list", action="store_true", help="show all files and fetch nothing")
    parser.add_argument("--to", metavar="DIR", help="another folder than ckpts/")
    flags = parse_strictly(parser, arguments)
    known = {released.name: released for released in RELEASED}
    for name in flags.names:
        if name not in known:
            raise UserError(f"no released file {name!r}{nearest(name, known)}; --list shows all")
    chosen = [known[name] for name in flags.names] or list(RELEASED)
    if flags.list:
        print("\n\n".join(map(describe, chosen)))
        return
    failures = []
    for released in chosen:
        try:
            fetch(released, place(released, flags.to))
        except RunFailed as failure:
            print(f"{released.name}: failed", flush=True)
            failures.append(f"{released.name}: {failure}")
    if failures:
        raise RunFailed("; ".join(failures))


def describe(released: Released) -> str:
    """A few lines on a file."""
    how = "by hand, from" if released.by_hand else "from"
    digits = f"starts with {released.digits}" if released.digits else "not published"
    return (
        f"{released.name}: {released.what}\n  {how} {released.source}\n"
        f"  to {released.place.replace('`', '')}\n"
        f"  size {released.size}; SHA-256 {digits}; licence {released.licence}"
    )


def place(released: Released, folder: str | None) -> Path:
    """Where a file goes: into `folder` if one is given, else where it is looked for."""
    if folder is not None:
        return Path(folder).expanduser() / released.file
    if released.in_torch_cache:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints" / released.file
    return CKPTS / released.file


def fetch(released: Released, target: Path) -> None:
    """Fetch one file, unless it is there already, or say how to."""
    if target.is_file() and sha256(target).startswith(released.digits):
        print(f"{released.name}: {target} is there already", flush=True)
    elif released.by_hand:
        print(
            f"{released.name}: fetch it by hand (a cloud drive, no stable address)\n"
            f"  from {released.source}\n  to {target}",
            flush=True,
        )
    else:
        digest = download(released.source, target, released.digits, load_weights)
        checked = "as its name claims" if released.digits else "no published one to compare with"
        print(f"{released.name}: {target}\n  SHA-256 {digest} ({checked})", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))
