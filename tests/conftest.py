"""What tests share: small images, fresh interpreters, short runs and what is compared between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deit import main
from srd.data import augment
from srd.errors import exit_code
from srd.files.checkpoint import load_file, load_weights
from srd.run.log import read_metrics
from tests.narrow import narrow as narrowed

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "test_byobnet"  # of timm's networks for tests: convolutional, 0.2 M parameters

# Files of minutes, begun first: what begins last is waited for by all other processes.
LONG = ("test_processes.py", "test_launch.py", "test_train.py", "test_resume.py", "test_extend.py")
SHARING = ("distributed", "export")  # rooms with fixtures of half a minute

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What stays on one process: a file, or rooms that share a run. (xdist's own --dist loadgroup writes
    groups into names of tests, which pytest 9.2 keeps to itself.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return file.parent.name if file.parent.name in SHARING else str(file)

    return Rooms(config, log)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is fetched, and nothing that this machine has fetched is seen."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def random_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the small teacher, for ten classes."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.manual_seed(0)
    torch.save({"model": timm.create_model(TEACHER, num_classes=10).state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, random_teacher: Path) -> Path:
    """A YAML file: 60 digits at 16 pixels, two epochs of six steps, a small teacher.

    It is measured on a few more, not on the 500 of the validation split: most of a short run's time.
    """
    settings = {
        "model": {"image_size": 16},
        "data": {"dataset": "digits", "images_per_class": 6, "select_fraction": 0.01, "workers": 0},
        "teacher": {"name": TEACHER, "checkpoint": str(random_teacher)},
        "augment": {"rand_augment": ""},
        "optim": {"lr": 0.01, "warmup_epochs": 1},
        "train": {"batch_size": 10, "epochs": 2, "log_every": 1},
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


@pytest.fixture
def narrow() -> Iterator[None]:
    """`tiny` is small: for tests of what happens around a student, not in it."""
    with narrowed():
        yield


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], int], None]:
    """`strike(what, step)` calls `what` once, in the middle of a step of the next run."""

    def plan(what: Callable[[], None], at: int) -> None:
        mix, due = augment.Mix.__call__, [at]

        def struck(self: Any, images: Any, targets: Any, step: int) -> Any:
            if step in due:
                due.remove(step)
                what()
            return mix(self, images, targets, step)

        monkeypatch.setattr(augment.Mix, "__call__", struck)

    return plan


class Outcome(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def deit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`deit(...)` is `python deit/main.py ...`, in this process."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = exit_code(lambda: main.run([str(argument) for argument in arguments]))
        return Outcome(code, *capsys.readouterr())

    return command


class Run:
    """A run's folder, and what is compared between runs."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl without their speeds."""
        rows = read_metrics(self.path / "metrics.jsonl", kind)
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]

    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    def state(self, name: str = "last.pth") -> dict[str, Any]:
        """What a checkpoint holds, without seconds and settings."""
        state = load_file(self.checkpoints / name)
        del state["position"]["seconds"], state["config"]
        return state

    def assert_same(self, other: Run) -> None:
        """The same bits: weights, optimizer, best model, and every number on the way."""
        assert self.rows() == other.rows()
        for name in ("last.pth", "best.pth"):
            assert_same_values(self.state(name), other.state(name), name)
        students = [run.path / "student.safetensors" for run in (self, other)]
        assert_same_values(*map(load_weights, students), "student.safetensors")
        assert students[0].read_bytes() == students[1].read_bytes()


def assert_same_values(mine: Any, theirs: Any, where: str) -> None:
    """Nested containers with the same tensors, to the bit, and the same plain values."""
    assert type(mine) is type(theirs), where
    if isinstance(mine, Mapping):
        assert list(mine) == list(theirs), where
        for key in mine:
            assert_same_values(mine[key], theirs[key], f"{where}/{key}")
    elif isinstance(mine, (list, tuple)):
        assert len(mine) == len(theirs), where
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            assert_same_values(one, other, f"{where}/{number}")
    elif isinstance(mine, torch.Tensor):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), where
    else:
        assert mine == theirs, where


@pytest.fixture(scope="session")
def open_run() -> Callable[[Path], Run]:
    return Run


@pytest.fixture(scope="session")
def make_jpegs() -> Callable[..., Path]:
    """`make_jpegs(folder, {"train/cat": 3})` writes <folder>/train/cat/{0,1,2}.jpg."""

    def make(folder: Path, counts: Mapping[str, int], size: tuple[int, int] = (40, 32)) -> Path:
        draw = np.random.RandomState(0)
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.randint(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
        return folder

    return make


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a RegNetY-002 for ten classes."""
    path = tmp_path_factory.mktemp("regnety") / "regnety_002.pth"
    torch.manual_seed(7)
    torch.save({"model": timm.create_model("regnety_002", num_classes=10).state_dict()}, path)
    return path


MakeImages = Callable[[Mapping[str, int]], Path]
RunPython = Callable[..., str]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """`{"train/cat": 3}` makes three JPEG files in <folder>/train/cat; returns the folder."""

    def make(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "images"
        draw = np.random.RandomState(0)
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.randint(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{number}.jpg")
        return root

    return make


@pytest.fixture
def run_python() -> RunPython:
    """Runs a fresh interpreter on this checkout; returns what it printed."""

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
