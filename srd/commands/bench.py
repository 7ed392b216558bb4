"""Time this project and a plain reference in turn: `srd bench step`.

Without a name, all. Each line has medians with half the distance between the quartiles, the ratio of
ours to the reference, and the floor that the machine sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srd.cli import Parser, parse_strictly
from srd.errors import UserError, nearest
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

    with importing():
        from srd.bench.machine import machine, matrix_rate, memory_rate
        from srd.bench.pages import head, notes, row, write
        from srd.bench.timing import SIZES
        from srd.device import choose_device, set_determinism

        names = flags.names or [n for n in known if not flags.gpu or n in GPU]
        measures = [known[name].load() for name in names]

    device = choose_device("cuda" if flags.gpu and flags.device == "auto" else flags.device)
    set_determinism(False)  # as in a run
    chosen = [name for name in ("quick", "gpu", "tiny") if getattr(flags, name)]
    sizes = SIZES[chosen[0] if chosen else "full"]
    about = machine(device)
    about["matrix_rate"], about["memory_rate"] = matrix_rate(device), memory_rate(device)
    print(
        f"{about['processor']}, {about['device']}, {about['threads']} thread(s): "
        f"{about['matrix_rate'] / 1e9:,.0f} GFLOP/s (float32), "
        f"{about['memory_rate'] / 1e9:,.1f} GB/s\n\n{head()}",
        flush=True,
    )
    lines = []
    for measure in measures:
        for line in measure(sizes, device):
            lines.append(line)
            print(row(line), flush=True)
    print(f"\n{notes(lines)}")
    if flags.json:
        write(Path(flags.json).expanduser(), lines, about)
