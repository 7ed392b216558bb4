"""The machine: what it is, and how fast its matrices, its memory and its disk are."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srd.bench.timing import in_turn
from srd.device import device_name
from srd.run.provenance import provenance


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, GPU, threads and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "system": platform.platform(),
        **provenance(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of one large product of matrices."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = in_turn({"product": lambda: a @ a}, seconds=0.3, device=device, rounds=5)
    return 2 * size**3 / min(times["product"])


def memory_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones((256 if device.type == "cuda" else 64) << 20, dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    times = in_turn({"copy": lambda: target.copy_(source)}, seconds=0.3, device=device, rounds=5)
    return 2 * source.numel() / min(times["copy"])


def disk_rate(folder: Path, megabytes: int) -> float:
    """Bytes a second that are written to `folder` until they are on the disk."""
    content = os.urandom(1 << 20) * megabytes

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    return len(content) / median(
        in_turn({"write": write}, seconds=0, rounds=3, warm_up=False)["write"]
    )


def operations(model: nn.Module, images: torch.Tensor, *, training: bool) -> int:
    """Floating-point operations of a pass over `images`, the backward pass included in training."""
    was_training = model.training
    model.train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = model(images)
        if training:
            getattr(output, "logits", output).sum().backward()
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
