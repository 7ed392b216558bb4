"""Several processes on this machine beside one that does the same share of the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from srd.bench.step import Step, configuration, our_step, random_batch
from srd.bench.timing import Line, Sizes, in_turn
from srd.device import Precision, choose_device
from srd.distributed import processes
from srd.models.students import open_student

PROCESSES = 2
ROUNDS = 3  # the same number in all processes


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Two processes, each with half of a batch; on GPUs where there are two."""
    if device.type == "cuda" and torch.cuda.device_count() < PROCESSES:
        return
    share = replace(sizes, batch_size=max(2, sizes.batch_size // PROCESSES))
    alone = in_turn({"step": student_step(share, device)}, seconds=sizes.seconds / 2, device=device)
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={PROCESSES}", "-m", __spec__.name, device.type, str(result),
            json.dumps(asdict(sizes)),
        ]  # fmt: skip
        threads = str(max(1, torch.get_num_threads() // PROCESSES))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"two processes: {done.stderr.strip()[-500:]}")
        times = json.loads(result.read_text())
    yield Line(
        name=f"processes: {PROCESSES}, {sizes.student} alone",
        ours=times["ours"],
        reference=times["reference"],
        floor=min(alone["step"]),
        items=sizes.batch_size,
        note="reference: plain DDP, statistics of shares; floor: one process with one share",
    )


def student_step(sizes: Sizes, device: torch.device) -> Step:
    """Our step without a teacher."""
    precision = Precision.choose("auto", device)
    batch = random_batch(replace(sizes, batch_size=sizes.batch_size), device)
    return our_step(configuration(sizes, device), None, precision, batch)


def _plain_step(sizes: Sizes, device: torch.device) -> Step:
    student = open_student(sizes.student, image_size=sizes.image_size).to(device).train()
    parallel = DistributedDataParallel(student, [device] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4, weight_decay=0.05)
    batch = random_batch(sizes, device)

    def step() -> None:
        optimizer.zero_grad()
        output = parallel(batch.images.to(device))
        loss = F.cross_entropy(output.logits, batch.targets.to(device))
        if output.distilled_logits is not None:
            loss = loss + F.cross_entropy(output.distilled_logits, batch.targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 15.0)
        optimizer.step()
        loss.item()

    return step


def _one_of_them(kind: str, result: str, text: str) -> None:
    sizes = Sizes(**json.loads(text))
    device = choose_device(kind)
    with processes.joined(device):
        share = replace(sizes, batch_size=max(2, sizes.batch_size // PROCESSES))
        calls = {"ours": student_step(share, device), "reference": _plain_step(share, device)}
        times = in_turn(calls, seconds=0, rounds=ROUNDS, device=device)
        if processes.is_main():
            Path(result).write_text(json.dumps(times))


if __name__ == "__main__":
    _one_of_them(*sys.argv[1:])
