"""The command line of the ResNet half, checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from srd.strict import STRICT, PathText, RunName, Seed


def _no_folder(text: str) -> str:
    if os.path.isdir(os.path.expanduser(text)):
        raise ValueError("should be a file, not a folder")
    return text


LogFile = Annotated[PathText, AfterValidator(_no_folder)]


@dataclass(config=STRICT)
class Options:
    """What `resnet/main.py` was called with, torchdistill's names kept."""

    config: PathText
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Seed = 0
    output: PathText = "runs"
    name: RunName | None = None
    resume: PathText = "auto"
    extend: bool = False
    slim: bool = False
    track: str | None = None
    data_path: PathText | None = None
    test_only: bool = False
    student_only: bool = False
    log_config: bool = False
    adjust_lr: bool = False
    trust_config: bool = False
    run_log: LogFile | None = None
    teacher_cache: PathText | None = None

    @property
    def run_name(self) -> str:
        """Of the run's folder."""
        return self.name or Path(self.config).stem

    def without_effect(self) -> list[str]:
        """Flags that were given, and that a test does not read."""
        if not self.test_only:
            return []
        flags = {
            "--resume": self.resume != "auto",
            "--log": self.run_log is not None,
            "--track": self.track is not None,
            "-log_config": self.log_config,
            "-adjust_lr": self.adjust_lr,
        }
        return [flag for flag, given in flags.items() if given]
