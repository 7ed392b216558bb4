"""A random teacher, and the command line as a function."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet34

from resnet.main import run
from srd.errors import exit_code
from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, OURS, OURS_LOSS, PAIR, TEST, Command

# torchdistill needs a newer torch than the rest of the project.
collect_ignore_glob = [] if find_spec("torchdistill") else ["test_*.py"]


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-34 for ten classes with random weights."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "resnet34.pth"
    torch.save({"model": resnet34(num_classes=10).state_dict()}, path)
    return path


@pytest.fixture
def srd_yaml(tmp_path: Path, teacher_file: Path) -> str:
    """Our wrapper and criterion on the digits."""
    models = PAIR.format(teacher=teacher_file, folder=tmp_path)
    return DATA + models + "\ntrain:" + LOADERS + OURS + CRITERION + CE + OURS_LOSS + TEST


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a configuration's text through the command line; returns the exit code."""

    def call(text: str, *flags: str, name: str = "run") -> int:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        arguments = ["--config", str(path), "--output", str(tmp_path / "runs"), "--device", "cpu"]
        return exit_code(lambda: run([*arguments, *flags]))

    return call
