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


def table(lines: Sequence[Line]) -> str:
    """Markdown: medians with their spread, and ours over the reference and over the floor."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(_cells(line) for line in lines)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = dict.fromkeys(f"{line.name.split(':')[0]}: {line.note}" for line in lines if line.note)
    return "\n".join([text, "", *(f"- {note}." for note in notes)])


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.name,
        _time(line.ours),
        _time(line.reference) if line.reference else "",
        f"{line.ratio:.2f}" if line.ratio else "",
        f"{line.items / median(line.ours):,.1f}" if line.items > 1 else "",
        f"{1e3 * line.floor:,.1f} ms ({median(line.ours) / line.floor:.2f})" if line.floor else "",
        str(len(line.ours)),
    )


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
