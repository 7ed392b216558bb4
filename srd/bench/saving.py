"""A checkpoint: how long a step waits for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from srd.bench.machine import disk_rate
from srd.bench.timing import Line, Sizes, in_turn
from srd.run.folder import RunFolder


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """The time that a save blocks, and until it is on the disk."""
    values = sizes.state_mb * (1 << 20) // 4 // 100
    state = {"model": {f"{i}": torch.randn(values, device=device) for i in range(100)}}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = RunFolder(name)
        folder.prepare()

        def ours() -> None:
            folder.save(folder.last, state)

        def reference() -> None:
            path = folder.path / "reference.pth"
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

        times = in_turn({"ours": ours, "reference": reference}, seconds=sizes.seconds)
        rate = disk_rate(folder.path, sizes.state_mb)
    yield Line(
        name=f"save: {sizes.state_mb} MB",
        **times,
        floor=sizes.state_mb * (1 << 20) / rate,
        note="reference: torch.save and a rename, not synced; floor: the same bytes written and synced",
    )
