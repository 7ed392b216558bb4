"""Data sets: `srd data pack SOURCE OUT` writes one into a few large files, resized if asked.

`--data-path OUT` reads them: the same pictures by the same numbers, without a file system that holds
millions of files; resized, they also decode faster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from srd.cli import Parser, parse_strictly
from srd.errors import UserError
from srd.libraries import importing
from srd.printable import printable

MOST_SIDE = 16_384  # pixels


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd data", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "write a data set into Arrow files, whole or not at all"
    pack = commands.add_parser("pack", help=text, description=text, allow_abbrev=False)
    pack.add_argument("source", metavar="SOURCE", help="as --data-path")
    pack.add_argument("out", metavar="OUT", help="the folder to make")
    pack.add_argument("--dataset", default="imagefolder", help="what SOURCE is, as in srd train")
    pack.add_argument("--side", type=int, metavar="N", help="resize the shorter side to N pixels")
    pack.add_argument("--quality", type=int, metavar="Q", help="of resized pictures (90)")
    text = "leave resized pictures uncompressed: several times larger, and nothing to decode"
    pack.add_argument("--uncompressed", action="store_true", help=text)
    pack.add_argument("--skip-broken", action="store_true", help="leave broken pictures out")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Pack a data set into files that are read by position.

    Raises:
        UserError: wrong flags, no data, an existing or unwritable OUT, a picture that cannot be read.
    """
    flags = parse_strictly(make_parser(), arguments)
    if flags.side is not None and not 1 <= flags.side <= MOST_SIDE:
        raise UserError(f"--side {flags.side}: from 1 to {MOST_SIDE:,} pixels")
    if flags.quality is not None and not 1 <= flags.quality <= 100:
        raise UserError(f"--quality {flags.quality}: from 1 to 100")
    if flags.quality is not None and flags.side is None:
        raise UserError("--quality has no effect without --side: files are kept as they are")
    if flags.uncompressed and (flags.side is None or flags.quality is not None):
        raise UserError("--uncompressed needs --side, and goes without --quality")
    with importing():  # takes seconds: mistakes in the command are told before
        from srd.config.fields import Data
        from srd.data.packing import Packing, pack
        from srd.data.sources import check_known

    check_known(flags.dataset)
    packing = Packing(flags.side, None if flags.uncompressed else flags.quality or 90)
    data = Data(dataset=flags.dataset, path=flags.source or None)
    out = Path(flags.out).expanduser()
    show = _progress()
    for line in pack(data, out, packing, skip_broken=flags.skip_broken, progress=show):
        print(printable(line))


def _progress() -> Callable[[int, int], None]:
    """A line on a terminal, twice a second; one every minute elsewhere."""
    start = last = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal last
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if done < of and now - last < (0.5 if terminal else 60):
            return
        last = now
        rate = done / max(now - start, 1e-6)
        text = f"packed {done:,} of {of:,} pictures, {rate:,.0f} a second"
        print(f"\r{text}" if terminal else text, end="" if terminal and done < of else "\n",
              file=sys.stderr, flush=True)  # fmt: skip

    return show
