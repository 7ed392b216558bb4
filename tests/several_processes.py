"""Called in test_processes.py, or started there by torchrun: runs and evaluations on that many processes.

    several_processes.py <folder> <action> ...

Real command lines, but `tiny` is narrow: what is tested is what happens between processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deit import main as deit
from resnet import main as resnet
from srd.data import augment
from srd.distributed import processes
from srd.errors import Stopped
from srd.evaluation import of_checkpoint as evaluation
from tests.narrow import narrow

HERE, PROCESSES = Path(__file__).parent, int(os.environ.get("WORLD_SIZE", "1"))
RANK, LIFE = (
    int(os.environ.get("RANK", "0")),
    int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
)


def train(folder: Path, name: str, *more: str) -> None:
    """The DeiT half: 30 steps of 16 digits with mixup and cutmix."""
    deit.run(
        ["--train_student", f"--config={folder / 'deit.yaml'}", f"--output={folder}",
         f"--name={name}", *more]
    )  # fmt: skip


def parts(folder: Path, loss: str) -> None:
    """Five steps of a student without batch norms: alone of whole batches, else in micro-batches.

    With a moving average of it.
    """
    micro = ["--set=train.micro_batch=3"] if PROCESSES > 1 else []
    train(folder, f"parts-{loss}_{PROCESSES}", "--model=test_vit", f"--distillation={loss}",
          "--amp=fp64", "--epochs=1", "--set=train.ema_decay=0.5", *micro)  # fmt: skip


def train_resnet(folder: Path, name: str, *more: str) -> None:
    """The ResNet half: 30 steps of 16 digits."""
    resnet.run(
        [f"--config={folder / f'{name}.yaml'}", f"--output={folder}", f"--name={name}_{PROCESSES}",
         "--device=cpu", "-student_only", *more]
    )  # fmt: skip


def at_step(step: int, what: Callable[[], None]) -> None:
    """Call `what` in the middle of a step of the runs that follow."""
    mix = augment.Mix.__call__

    def struck(self: Any, images: Any, targets: Any, now: int) -> Any:
        if now == step:
            what()
        return mix(self, images, targets, now)

    augment.Mix.__call__ = struck  # type: ignore[method-assign]


def stop_at(folder: Path, name: str, step: int) -> None:
    """The last process alone is told to stop; all do, after the same step."""
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM) if RANK == PROCESSES - 1 else None)
    try:
        train(folder, name, "--amp=fp64")
    except Stopped:
        return
    raise AssertionError("nobody stopped")


def die_at(folder: Path, step: int) -> None:
    """One process is killed in its first life; torchrun starts all again."""
    if LIFE == 0 and RANK == 1:
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(folder, "died", "--amp=fp64", "--set=train.save_every_steps=5", "--resume=none")
    if RANK == 0:
        (folder / "lives.json").write_text(json.dumps(LIFE + 1))


def evaluate(folder: Path) -> None:
    """500 images, whatever the number of processes divides."""
    given = [f"--config={folder / 'deit.yaml'}", "--set=data.select_fraction=null"]
    config = deit.configure(deit.make_parser().parse_args(given))
    found = evaluation.evaluate_checkpoint(config, str(folder / "random.pth"))
    if RANK == 0:
        (folder / f"accuracy_{PROCESSES}.json").write_text(json.dumps(found.row()))


def act(folder: Path, action: str) -> None:
    name, _, where = action.partition("@")
    match name:
        case "stop-2to1" | "stop-2to4to1":
            stop_at(folder, name.removeprefix("stop-"), int(where))
        case "die":
            die_at(folder, int(where))
        case "end-2to1" | "end-2to4to1":
            train(folder, name.removeprefix("end-"), "--amp=fp64")
        case "evaluate":
            evaluate(folder)
        case "step":
            train(folder, f"step_{PROCESSES}", "--amp=fp64", "--epochs=1", "--batch-size=80")
        case "deit-fp64" | "deit-off":
            train(folder, f"{name}_{PROCESSES}", f"--amp={name.removeprefix('deit-')}")
        case _ if name.startswith("parts-"):
            parts(folder, name.removeprefix("parts-"))
        case "deit-local":
            train(
                folder, f"{name}_{PROCESSES}", "--amp=fp64", "--set=train.global_statistics=false"
            )
        case _:
            train_resnet(folder, name)


def perform(folder: Path, actions: list[str]) -> None:
    """One action after the other."""
    with narrow(depth=12):
        for action in actions:
            act(folder, action)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined(torch.device("cpu")):
        perform(Path(sys.argv[1]), sys.argv[2:])
