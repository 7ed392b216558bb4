"""What the command line of the ResNet half asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Options:
    """The command line of `resnet/main.py`, torchdistill's names kept."""

    config: str
    device: str = "auto"
    seed: int = 0
    output: str = "runs"
    name: str | None = None
    resume: str = "auto"
    data_path: str | None = None
    test_only: bool = False
    student_only: bool = False
    log_config: bool = False
    adjust_lr: bool = False
    trust_config: bool = False
    run_log: str | None = None
