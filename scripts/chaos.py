"""Kill a run at random instants, start it again each time, and compare it with an undisturbed one.

    python scripts/chaos.py                        50 kills of the digits run, in its saves too
    python scripts/chaos.py --processes 1 2        each life on one or two processes (in fp64)
    python scripts/chaos.py --kills 5 -- --epochs 30 --set train.save_every_steps=4

What follows -- goes to deit/main.py. The exit code is 0 when the two runs end alike: in the same
bits on one process, within 1e-9 where the number of processes changes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srd.files.checkpoint import load_file, load_weights
from srd.run.log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-9
USUAL = [
    "--model=tiny", "--train_student", f"--config={ROOT / 'configs/digits/deit.yaml'}",
    "--epochs=200", "--device=cpu", "--workers=1", "--set=train.save_every_steps=1",
]  # fmt: skip


class Kill(NamedTuple):
    """What a kill met: the updates in the last whole checkpoint, and whether it hit a save."""

    updates: int
    in_save: bool


class Victim:
    """One run, started again and again."""

    def __init__(self, folder: Path, arguments: list[str], draws: random.Random) -> None:
        self.folder, self.arguments, self.draws = folder, arguments, draws
        self.last = folder / "checkpoints" / "last.pth"

    def start(self, processes: int) -> subprocess.Popen[bytes]:
        """A life of the run, in a process group of its own."""
        python = [sys.executable]
        if processes > 1:
            python += [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
            ]
        place = [f"--output={self.folder.parent}", f"--name={self.folder.name}"]
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        return subprocess.Popen(
            [*python, str(ROOT / "deit" / "main.py"), *self.arguments, *place],
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def finish(self, processes: int) -> None:
        """Let it run to its end; a RuntimeError tells what it said if it did not get there."""
        life = self.start(processes)
        _, told = life.communicate()
        if life.returncode:
            raise RuntimeError(f"exit code {life.returncode}: {told.decode()[-2000:]}")

    def kill_once(self, processes: int) -> Kill | None:
        """Start it and kill -9 every process of it at once; None when it ended before.

        One kill in eight comes while it starts, the others within three seconds after its first save.
        """
        life, before = self.start(processes), self.saved()
        starting = self.draws.random() < 1 / 8
        while not starting and life.poll() is None and self.saved() == before:
            time.sleep(0.01)
        time.sleep(self.draws.uniform(0, 5 if starting else 3))
        if life.poll() is not None:
            _, told = life.communicate()
            if life.returncode:
                raise RuntimeError(f"exit code {life.returncode}: {told.decode()[-2000:]}")
            return None
        for process in family(life.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        life.communicate()
        in_save = any(self.last.parent.glob(".*.part"))
        state = load_file(self.last) if self.last.exists() else {"position": {"updates": 0}}
        return Kill(state["position"]["updates"], in_save)

    def saved(self) -> int:
        """When the last checkpoint was written."""
        return self.last.stat().st_mtime_ns if self.last.exists() else 0


def family(first: int) -> list[int]:
    """A process and all that it started: torchrun's are in sessions of their own."""
    processes = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    parents = [tuple(map(int, line.split())) for line in processes.stdout.splitlines()]
    members = [first]
    for member in members:  # grows as children are found
        members += [process for process, parent in parents if parent == member]
    return members


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock says."""
    metrics = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in metrics]


def difference(ours: Path, theirs: Path) -> float:
    """The largest relative difference of weights and losses; 0: metrics and checkpoints are equal."""
    states = [load_file(folder / "checkpoints" / "last.pth") for folder in (ours, theirs)]
    weights = [load_weights(folder / "student.safetensors") for folder in (ours, theirs)]
    tensors = [[*_tensors(s["model"]), *_tensors(s["optimizer"]), *w.values()]
               for s, w in zip(states, weights, strict=True)]  # fmt: skip
    worst = 0.0
    for mine, other in zip(*tensors, strict=True):
        if not torch.equal(mine, other):
            scale = max(float(other.double().norm()), 1e-6)
            worst = max(worst, float((mine.double() - other.double()).norm()) / scale)
    for mine, other in zip(rows(ours), rows(theirs), strict=True):
        for name, value in other.items():
            if mine[name] != value:
                worst = max(worst, abs(mine[name] - value) / max(abs(value), 1e-6))
    return worst


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="drawn for each life")
    parser.add_argument("--output", type=Path, default=Path("runs/chaos"))
    parser.add_argument("arguments", nargs="*", help="after --: for deit/main.py")
    asked = parser.parse_args()
    several = asked.processes != [1]
    arguments = [*USUAL, *(["--amp=fp64"] if several else []), *asked.arguments]
    draws = random.Random(asked.seed)
    print("the undisturbed run", flush=True)
    Victim(asked.output / "undisturbed", arguments, draws).finish(1)
    victim, kills = Victim(asked.output / "killed", arguments, draws), []
    for number in range(asked.kills):
        processes = draws.choice(asked.processes)
        kill = victim.kill_once(processes)
        if kill is None:
            print(f"the run ended after {number} kills: give it more --epochs")
            return 1
        kills.append(kill)
        place = ", in a save" if kill.in_save else ""
        print(
            f"kill {number + 1} of {processes} process(es): {kill.updates} updates saved{place}",
            flush=True,
        )
    victim.finish(draws.choice(asked.processes))
    largest = difference(asked.output / "killed", asked.output / "undisturbed")
    in_saves = sum(kill.in_save for kill in kills)
    print(
        f"{len(kills)} kills, {in_saves} of them in a save; largest relative difference {largest:.1e}"
    )
    alike = largest <= (TOLERANCE if several else 0)
    print("the same run" if alike else "NOT the same run")
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
