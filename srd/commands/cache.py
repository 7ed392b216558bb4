"""The teacher cache: `srd cache fill | list | verify | size | prune`.

fill records what a cache lacks, without a student; it takes the flags of `srd train`. verify checks
every row; with a --config or flags of `srd train` it also computes some steps again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.commands.settings import add_settings, given, shared
from srd.config.layers import Layer
from srd.errors import UserError
from srd.libraries import importing
from srd.printable import printable


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd cache", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    fill = command("fill", "record what a cache lacks: --teacher-cache DIR, and srd train's flags")
    fill.add_argument("--part", metavar="I/N", help="only part I of N, such as 1/8 (SLURM arrays)")
    add_settings(fill)
    listing = command("list", "what a cache, or every cache in a folder, holds")
    verify = command("verify", "check all rows; with srd train's flags, compute a sample again")
    verify.add_argument("--sample", type=int, default=4, metavar="N", help="steps to compute again")
    add_settings(verify)
    size = command("size", "bytes a view, an epoch, in all; and what is free")
    prune = command("prune", "remove what killed or damaged recordings left")
    prune.add_argument("--epochs", type=int, metavar="K", help="and every epoch from K on")
    for sub in (listing, verify, size, prune):
        sub.add_argument("folder", metavar="DIR", help="the cache's folder")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Fill, list, verify, size or prune a teacher cache.

    Raises:
        UserError: wrong flags, no such cache, a damaged one, or one that says something else than
            the teacher. RunFailed: it cannot be written.
    """
    flags = parse_strictly(make_parser(), arguments)
    if flags.command == "fill":
        part = parse_part(flags.part)
        with importing():  # takes seconds: mistakes in the command are told before
            config = configure(flags, [])
            from srd.training.fill import Share, fill
        fill(config, Share(*part) if part else None)
        return
    from srd.cache import inspection

    folder = Path(flags.folder).expanduser()
    if flags.command == "list":
        for line in inspection.listing(folder):
            print(printable(line))
    elif flags.command == "size":
        print(printable(inspection.size(folder)))
    elif flags.command == "prune":
        if (flags.epochs or 0) < 0:
            raise UserError(f"--epochs {flags.epochs}: expected a number from 0")
        for line in inspection.prune(folder, flags.epochs):
            print(printable(line))
    else:
        verify(folder, flags)


def verify(folder: Path, flags: Any) -> None:
    """Check all rows; where flags say with which teacher, also what they hold."""
    from srd.cache import inspection

    by_hand = given(flags)
    if flags.sample < 1:
        raise UserError(f"--sample {flags.sample}: expected a number of steps from 1")
    if any("path" in layer.values.get("cache", {}) for layer in by_hand):
        raise UserError("--teacher-cache: DIR says which cache; leave it out")
    place = Layer("DIR", {"cache": {"path": str(folder)}})
    # mistakes in the command are told before all is read
    config = configure(flags, [place]) if by_hand or flags.config else None
    print(printable(inspection.verify(folder)))
    if config is not None:
        from srd.training.verify_cache import compare

        print(compare(config, flags.sample))


# Of `srd train`'s settings, what says nothing of what a teacher sees, or of what is kept of it.
IDLE = (
    "output", "name", "compile", "resume", "extend", "slim", "track", "model.name",
    "model.drop_path", "model.init", "model.freeze_backbone", "augment.label_smoothing", "optim.",
    "distill.ce_weight", "distill.kl_weight", "distill.repr_weight", "distill.temperature",
    "train.evaluate_every", "train.save_every", "train.keep", "train.log_every", "train.ema",
    "train.global_statistics",
)  # fmt: skip


def configure(flags: Any, more: Sequence[Layer]) -> Any:
    """The configuration of the run whose teacher is meant, its preset filled in."""
    from srd.config.effects import configure, tell_idle

    layers = shared(flags), [*given(flags), *more]
    tell_idle(given(flags), IDLE, "on a teacher cache")
    configure(*layers, "student")  # mistakes are told before torch is imported
    from srd.training.presets import configure_training

    return configure_training(*layers, "student").config


def parse_part(text: str | None) -> tuple[int, int] | None:
    """`2/8` as (1, 8); a UserError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: expected I/N, from 1/N to N/N")
    return int(match[1]) - 1, int(match[2])
