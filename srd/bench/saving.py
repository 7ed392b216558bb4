"""A checkpoint: how long a step waits for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from srd.bench.machine import disk_rate, memory_rate
from srd.bench.timing import Line, Sizes, in_turn, timed
from srd.run.folder import RunFolder
from srd.run.saver import Saver


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """The time that a save blocks, and until it is on the disk."""
    values = sizes.state_mb * (1 << 20) // 4 // 100
    state = {"model": {f"{i}": torch.randn(values, device=device) for i in range(100)}}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = RunFolder(name)
        folder.prepare()

        saver, blocked = Saver(), []

        def until_on_the_disk() -> None:
            save = partial(saver.save, state, partial(folder.save, folder.last))
            blocked.append(timed(save, device))
            saver.wait()

        def reference() -> None:
            path = folder.path / "reference.pth"
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

        calls = {"ours": until_on_the_disk, "reference": reference}
        times = in_turn(calls, seconds=sizes.seconds, device=device)
        rate = disk_rate(folder.path, sizes.state_mb)
    plain = "reference: torch.save and a rename, not synced"
    yield Line(
        name=f"save: {sizes.state_mb} MB, what a step waits",
        ours=blocked[1:],  # the first makes room
        reference=times["reference"],
        floor=2 * sizes.state_mb * (1 << 20) / memory_rate(device),
        note=f"{plain}; floor: a copy in memory",
    )
    yield Line(
        name=f"save: {sizes.state_mb} MB, until it is on the disk",
        ours=times["ours"],
        reference=times["reference"],
        floor=sizes.state_mb * (1 << 20) / rate,
        note=f"{plain}; floor: the same bytes written and synced",
    )
