"""Memory that a training will take, measured on a few images, against what the machine has left.

A batch that does not fit ends, on a CPU, with the kernel's killer: no message, nothing saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from srd.config.fields import Data, Train
from srd.device import Precision
from srd.distributed import processes
from srd.errors import UserError
from srd.models.outputs import black_images, unchanged
from srd.training.task import DistillationTask

MB = 1e6
SPARE = 0.1  # of what is free: others need some too
TRANSIENT = 3  # times a layer's output: what it reads, what it makes, and work space
MOMENTS = 3  # a gradient and two moments of an optimizer for each weight


@dataclass(frozen=True)
class Needs:
    """Bytes that one process takes besides what it has.

    Args:
        held: by each image, from its forward to its backward pass.
        passing: by each image, while one layer runs.
        image: by each image of a batch, while the batch is there.
        fixed: gradients and moments.
    """

    held: float
    passing: float
    image: float
    fixed: float

    def of(self, batch: int, micro_batch: int, evaluated: int) -> float:
        """With `micro_batch` images of a `batch` in a graph; or with `evaluated` images at once."""
        training = batch * self.image + min(batch, micro_batch) * (self.held + self.passing)
        return self.fixed + max(training, evaluated * (self.image + self.passing))


def measure(
    student: nn.Module,
    teacher: nn.Module | None,
    image_size: int,
    precision: Precision,
    *,
    workers: int = 0,
) -> Needs:
    """What training `student` takes, from forward passes of two and of four black images.

    Args:
        workers: loader processes, each of which has two batches ready.

    Both networks are left as they were, and no random number is drawn.
    """
    few, more = (_held(student, count, image_size, precision) for count in (2, 4))
    passing = _largest(student, image_size, precision)
    if teacher is not None:
        passing = max(passing, _largest(teacher, image_size, precision))
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    channels = getattr(student, "in_chans", 3)
    image = (
        channels * image_size**2 * 4 * (2 + 2 * workers)
    )  # itself, mixed; and what is ready next
    return Needs((more - few) / 2, TRANSIENT * passing, image, MOMENTS * trained)


def _held(network: nn.Module, count: int, image_size: int, precision: Precision) -> int:
    """Bytes that a forward pass of `count` images leaves for its backward pass."""
    storages: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return value

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda value: value)
    with unchanged(network, training=True), saved, precision.autocast():
        output = network(black_images(network, count, image_size))
    del output
    return sum(storages.values())


@torch.no_grad()
def _largest(network: nn.Module, image_size: int, precision: Precision) -> float:
    """Bytes of the largest output of a module, for one image."""
    largest = 0

    def note(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        with unchanged(network, training=False), precision.autocast():
            network(black_images(network, 2, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    return largest / 2


def free_memory(device: torch.device) -> float | None:
    """Bytes that a process may still take; None where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = list(_of_groups())
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except OSError:
        return None
    return float(min(limits)) if limits else None


def _of_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """What the control groups of this process, and those above, leave: containers, SLURM, systemd."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        top = root
        if kinds:  # version 1
            if "memory" not in kinds.split(","):
                continue
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        place = Path(path.lstrip("/"))
        for folder in (place, *place.parents):  # the last one is `.`: the top
            if (left := _left(top / folder, *names)) is not None:
                yield left


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        now = int((folder / used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, most - now + int(counts.get(cached, 0)))


@dataclass(frozen=True)
class Fit:
    """How a training fits into memory: what to tell, and the micro-batch that was chosen."""

    line: str | None = None
    micro_batch: int | None = None


def fit(
    needs: Needs,
    free: float | None,
    *,
    batch: int,
    evaluated: int,
    micro_batch: int | None,
    batch_norms: bool,
    processes: int = 1,
    device: torch.device,
) -> Fit:
    """Whether a process's share of a batch fits; else the micro-batch with which it does.

    Args:
        free: bytes, for this process.
        batch, evaluated: images in a process's share of a training and of an evaluation batch.
        micro_batch: as set by hand.
        processes: over which the whole batch is shared out.
        batch_norms: whether a micro-batch would change what the student learns.

    Raises:
        UserError: on a CPU, it does not fit, and no micro-batch may mend it.
    """
    if free is None:
        return Fit()
    needed, usable = needs.of(batch, micro_batch or batch, evaluated), (1 - SPARE) * free
    line = f"memory: about {needed / MB:,.0f} MB needed, {free / MB:,.0f} MB are free"
    if needed <= usable:
        return Fit(line)
    if device.type != "cpu":
        return Fit(f"warning: {line}: a smaller --batch-size, or --set train.micro_batch, may help")
    if needs.of(0, 0, evaluated) > usable:
        most = max(1, int((usable - needs.fixed) / (needs.image + needs.passing)))
        raise UserError(
            f"{line}, for an evaluation of {evaluated} images at once: "
            f"--set data.eval_batch_size={max(_powers(most)) * processes}"
        )
    if needs.of(2, 2, evaluated) > usable:
        raise UserError(f"{line}, even for two images: take a smaller --image-size or model")
    if batch_norms and micro_batch is None:
        most = max(n for n in _powers(batch) if needs.of(n, n, evaluated) <= usable)
        raise UserError(
            f"{line}: --batch-size {most * processes} fits (micro-batches would change the statistics "
            "of the student's batch norms: set train.micro_batch to take them nevertheless)"
        )
    fitting = [n for n in _powers(batch) if needs.of(batch, n, evaluated) <= usable]
    if not fitting:
        raise UserError(f"{line}: take a smaller --batch-size")
    chosen = max(fitting)
    if micro_batch is not None:
        raise UserError(f"{line}: --set train.micro_batch={chosen} fits")
    return Fit(f"{line} for the whole batch: micro-batches of {chosen} images are taken", chosen)


def _powers(most: int) -> list[int]:
    """Powers of two up to `most`: the same where a little more or less is free."""
    return [1 << exponent for exponent in range(most.bit_length())]


def fit_training(
    task: DistillationTask,
    teacher: nn.Module | None,
    *,
    train: Train,
    data: Data,
    image_size: int,
    begins: bool,
) -> Fit:
    """How a training fits into the memory of the main process's machine: the same for all processes.

    Args:
        begins: off for a run that goes on: it keeps what was chosen at its start.

    Raises:
        UserError: it does not, and what would.
    """
    world, here = processes.world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    precision = task.precision
    workers = min(data.workers, os.cpu_count() or 1)
    needs = measure(task.student, teacher, image_size, precision, workers=workers)
    free = free_memory(precision.device)
    if free is not None and precision.device.type == "cpu":
        free /= here
    try:
        return processes.from_main(
            lambda: fit(
                needs,
                free,
                batch=-(-train.batch_size // world),
                evaluated=-(-data.eval_batch_size // world),
                micro_batch=train.micro_batch,
                batch_norms=any(isinstance(m, _BatchNorm) for m in task.model.modules()),
                processes=world,
                device=precision.device,
            )
        )
    except UserError as error:
        if begins:
            raise
        return Fit(f"warning: {error}")
