"""Time this project and a plain reference in turn: `srd bench step`.

Without a name, all. Each line has medians with half the distance between the quartiles, the ratio of
ours to the reference, and the floor that the machine sets.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srd.cli import Parser, parse_strictly
from srd.errors import UserError, clearing_away, nearest
from srd.installed import registered
from srd.libraries import importing

GPU = ("data", "step", "eval", "resnet", "save", "cache", "processes")  # what a GPU can show
GROUP = "srd.benches"


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", metavar="NAME", nargs="*", help="what to time (default: all)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="all in under two minutes")
    size.add_argument("--gpu", action="store_true", help="what a GPU can show, in eight minutes")
    size.add_argument("--tiny", action="store_true", help="whether it works: the numbers are none")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of a step, in its place"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of each comparison, likewise")
    parser.add_argument("--json", metavar="FILE", help="write all rounds there")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Time ours and a plain reference in turn.

    Raises:
        UserError: no such benchmark, or no GPU where one was asked for.
    """
    flags = parse_strictly(make_parser(), arguments)
    known = registered(GROUP)
    for name in flags.names:
        if name not in known:
            hint = nearest(name, known)
            raise UserError(f"unknown benchmark {name}{hint}: one of {', '.join(known)}")
    if flags.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {flags.device}: one of auto, cpu, cuda")
    if flags.gpu and flags.device == "cpu":
        raise UserError("--gpu and --device cpu: leave one of the two out")
    for name, given in (("--batch-size", flags.batch_size), ("--seconds", flags.seconds)):
        if given is not None and not 0 < given < 1e6:
            raise UserError(f"{name} {given}: a number above 0, and below a million")
    json = _writable(flags.json) if flags.json is not None else None

    with importing():
        import torch

        from srd.bench.machine import machine, matrix_rate, memory_rate
        from srd.bench.pages import head, notes, row, write
        from srd.bench.timing import SIZES
        from srd.device import choose_device, set_determinism

        names = flags.names or [n for n in known if not flags.gpu or n in GPU]
        measures = [known[name].load() for name in names]

    if flags.gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no GPU; --quick shows what a CPU can")
    device = choose_device("cuda" if flags.gpu and flags.device == "auto" else flags.device)
    set_determinism(False)  # as in a run
    chosen = [name for name in ("quick", "gpu", "tiny") if getattr(flags, name)]
    given = {"batch_size": flags.batch_size, "seconds": flags.seconds}
    own = {name: value for name, value in given.items() if value is not None}
    sizes = replace(SIZES[chosen[0] if chosen else "full"], **own)
    about = machine(device)
    about["matrix_rate"], about["memory_rate"] = matrix_rate(device), memory_rate(device)
    print(
        f"{about['processor']}, {about['device']}, {about['threads']} thread(s): "
        f"{about['matrix_rate'] / 1e9:,.0f} GFLOP/s (float32), "
        f"{about['memory_rate'] / 1e9:,.1f} GB/s\n\n{head()}",
        flush=True,
    )
    lines = []
    with clearing_away():
        for measure in measures:
            for line in measure(sizes, device):
                lines.append(line)
                print(row(line), flush=True)
    print(f"\n{notes(lines)}")
    if json is not None:
        write(json, lines, about)


def _writable(where: str) -> Path:
    """A file's path, where one can be made: not after minutes of measuring."""
    path = Path(where).expanduser()
    try:
        if not where or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--json {where}: cannot write there ({error.strerror})") from error
    return path
