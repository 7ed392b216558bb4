"""What was measured, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from srd.bench.timing import Line, spread
from srd.files.checkpoint import write_text

HEAD = ("what", "ours", "reference", "ratio", "items/s", "floor", "rounds")


def head() -> str:
    """The first two lines of a table in Markdown."""
    return f"{_row(*HEAD)}\n{_row(*('---' for _ in HEAD))}"


def row(line: Line) -> str:
    """Medians with their spread, and ours over the reference and over the floor."""
    return _row(
        line.name,
        _time(line.ours),
        _time(line.reference) if line.reference else "",
        f"{line.ratio:.2f}" if line.ratio else "",
        f"{line.items / median(line.ours):,.1f}" if line.items > 1 else "",
        f"{1e3 * line.floor:,.1f} ms ({median(line.ours) / line.floor:.2f})" if line.floor else "",
        str(len(line.ours)),
    )


def notes(lines: Sequence[Line]) -> str:
    """What references and floors are, for below the table."""
    said = dict.fromkeys(f"{line.name.split(':')[0]}: {line.note}" for line in lines if line.note)
    return "\n".join(f"- {note}." for note in said)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _time(seconds: list[float]) -> str:
    return f"{1e3 * median(seconds):,.1f} ms ± {100 * spread(seconds):.0f}%"


def write(path: Path, lines: Sequence[Line], machine: Mapping[str, Any]) -> None:
    """All rounds, with hardware and versions."""
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "lines": [line.row() for line in lines],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
