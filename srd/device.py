"""Devices and mixed precision, and numbers that come back from a GPU without stopping it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from srd.errors import UserError


def choose_device(name: str) -> torch.device:
    """`"auto"`, `"cpu"` or `"cuda"` as a device; with several processes, this one's GPU.

    Raises:
        UserError: a GPU was asked for and there is none (for this process).
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and available == 0):
        return torch.device("cpu")
    if local_rank >= available:
        raise UserError(
            f"--device {name}: process {local_rank} on this machine needs a GPU of its own, and "
            f"torch sees {available}; use --device cpu, or fewer processes"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """What to call a device in a result: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def set_determinism(deterministic: bool) -> None:
    """Same bits on every run of the same machine, or the fastest kernels."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def in_bfloat16(device: torch.device) -> torch.autocast:
    """The context in which convolutions and products of matrices are computed in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether it is known to have no instructions for bfloat16; older torch does not tell."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    return not any(
        has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16")
    )


def bfloat16_note(device: torch.device) -> str:
    """What to tell of a teacher that computes in it."""
    lacks = "this processor has no instructions for bfloat16, so it is slower"
    return f"the teacher computes in bfloat16{f': {lacks}' if lacks_bfloat16(device) else ''}"


@dataclass
class Precision:
    """The type of weights and images, and of mixed precision where it is on."""

    device: torch.device
    mixed: torch.dtype | None = None  # None: off
    dtype: torch.dtype = torch.float32

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """From a name: `auto` (bf16 on a GPU that has it, else fp16; off on the CPU), `off`, `bf16`,
        `fp16`, or `fp64` (everything in double precision: for proofs)."""
        if name == "auto":
            name = (
                "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp16"
            )
            name = "off" if device.type == "cpu" else name
        if name == "fp16" and device.type == "cpu":
            raise UserError("amp fp16 needs a GPU: use bf16 or off on the CPU")
        if name == "fp64":
            return cls(device, dtype=torch.float64)
        return cls(device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name])

    def autocast(self) -> torch.autocast:
        """The context in which models run."""
        return torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; it does nothing except for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.mixed == torch.float16)

    def __str__(self) -> str:
        return str(self.mixed or self.dtype).removeprefix("torch.")


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A pinned tensor's copy on a GPU, by a stream of its own: beside what the GPU has yet to do.

    Kernels that are queued from here on wait for it. On other devices, and of memory that is not
    pinned, a plain copy.
    """
    if device.type != "cuda" or not tensor.is_pinned():
        return tensor.to(device, non_blocking=True)
    with torch.cuda.stream(_copying(device)):
        copy = tensor.to(device, non_blocking=True)
    here = torch.cuda.current_stream(device)
    here.wait_stream(_copying(device))
    copy.record_stream(here)
    return copy


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Readback:
    """Scalars on their way from the device to the host, without stopping the device.

    The copy is queued behind the kernels that make the values; `wait` blocks the host only until
    those have run, while kernels queued later go on. On the CPU the values are there at once.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._names = list(values)
        stacked = torch.stack([value.detach().double().reshape(()) for value in values.values()])
        self._event: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = stacked

    @property
    def is_here(self) -> bool:
        """Whether there is nothing to wait for, as on the CPU."""
        return self._event is None

    def wait(self) -> dict[str, float]:
        """The values by name."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return dict(zip(self._names, self._host.tolist(), strict=True))
