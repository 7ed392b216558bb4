"""The checkpoints that torchdistill's wrappers keep for modules of their own, as files of this project."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchdistill.models import wrapper

from srd.distributed import processes
from srd.files.checkpoint import save_state
from srd.files.weights import load_into


def take_over() -> None:
    """Have torchdistill's wrappers read them as data, and write them whole or not at all."""
    wrapper.load_module_ckpt, wrapper.save_module_ckpt = _load, _save


def _load(module: nn.Module, _: object, path: str) -> None:
    load_into(module, path, "the wrapper's own module")


def _save(module: nn.Module, path: str) -> None:
    if processes.is_main():
        save_state(Path(path), module.state_dict())
