"""Starts: from the command to the first step, to a prediction, to an exported folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from srd.bench.timing import Line, Sizes, in_turn

CALL = "import sys; from srd.commands import main; sys.exit(main())"
IMPORTS = "import torch, timm, torchvision"


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Commands on the digits, each in a process of its own, and libraries alone."""
    rounds = 1 if sizes.seconds < 10 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = folder / "picture.png"
        Image.new("RGB", (64, 64), "gray").save(picture)
        run = folder / "run"
        commands: dict[str, Sequence[str]] = {
            "start: one epoch of 2 steps on the digits": [
                "train", "--dataset=digits", "--distillation=none", "--image-size=32",
                "--set=data.images_per_class=1", "--batch-size=4", "--epochs=1", "--workers=0",
                "--resume=none", f"--output={folder}", "--name=run", f"--device={device.type}",
                "--set=data.eval_batch_size=500",
            ],
            "start: predict one picture": ["predict", str(run), str(picture)],
            "start: export": ["export", str(run), f"--output={folder / 'exported'}"],
        }  # fmt: skip
        for what, arguments in commands.items():
            calls = {
                "ours": partial(python, CALL, *arguments),
                "reference": partial(python, IMPORTS),
            }
            times = in_turn(calls, seconds=0, rounds=rounds, warm_up=rounds > 1)
            yield Line(
                name=what,
                ours=times["ours"],
                reference=times["reference"],
                note="reference: a process that imports the libraries",
            )


def python(code: str, *arguments: str) -> None:
    """Run `code`; a RuntimeError says how it ended where it failed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-500:]}")
