"""Starts: from the command to the first step, to a prediction, to an exported folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import timm
import torch
from PIL import Image

from srd.bench.timing import Line, Sizes, in_turn
from srd.files.checkpoint import save_weights
from srd.models.students import open_student

CALL = "from srd.commands import main; main()"
LIBRARIES = "import torch, timm"
TEACHER = "regnety_002"  # of the digits


class Process:
    """Python that runs `code`, to its end or until a file holds something.

    `seconds` has the processor's for each call, of which other work on the machine takes none.

    Raises:
        RuntimeError: it fails, with what it said.
    """

    def __init__(self, code: str, *arguments: str, until: Path | None = None) -> None:
        self.command, self.until = [sys.executable, "-c", code, *arguments], until
        self.seconds: list[float] = []

    def __call__(self) -> None:
        if self.until:
            self.until.unlink(missing_ok=True)
        before = _of_children()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=said)
            while self.until and process.poll() is None:
                if self.until.is_file() and self.until.stat().st_size:
                    process.kill()
                    process.wait()
                    break
                time.sleep(0.005)
            else:
                if process.wait():
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(self.command)}: {said.read().strip()[-500:]}")
        self.seconds.append(_of_children() - before)


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Commands, each in a process of its own, and libraries alone."""
    rounds = 1 if sizes.seconds < 10 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture, student, teacher = (
            folder / n for n in ("it.png", "it.safetensors", "teacher.pth")
        )
        Image.new("RGB", (64, 64), "gray").save(picture)
        network = open_student(sizes.student, num_classes=10, image_size=32).model
        save_weights(student, network.state_dict(), {})
        torch.save({"model": timm.create_model(TEACHER, num_classes=10).state_dict()}, teacher)
        digits = (
            f"--model={sizes.student}", "--config=configs/digits/deit.yaml", f"--teacher={TEACHER}",
            f"--teacher-checkpoint={teacher}", f"--output={folder}", "--name=run", "--resume=none",
            f"--device={device.type}",
        )  # fmt: skip
        processes = {
            "first step on the digits": Process(
                CALL, "train", *digits, until=folder / "run" / "metrics.jsonl"
            ),
            "predict one picture": Process(CALL, "predict", str(student), str(picture)),
            "export": Process(
                CALL, "export", str(student), f"--output={folder / 'out'}", "--overwrite"
            ),
            LIBRARIES: Process(LIBRARIES),
        }
        times = in_turn(processes, seconds=0, rounds=rounds, warm_up=rounds > 1)
    used = {what: median(process.seconds[-rounds:]) for what, process in processes.items()}
    for what in processes:
        if what != LIBRARIES:
            yield Line(
                name=f"start: {what}",
                ours=times[what],
                reference=times[LIBRARIES],
                note=f"reference: `{LIBRARIES}`; {used[what]:.1f} and {used[LIBRARIES]:.1f} s of "
                "the processor",
            )


def _of_children() -> float:
    """Seconds of the processor, in user and system mode, of processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system
