"""Real students, trained for a few steps, and the folders that they were exported to."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from deit import main
from srd.commands import export, predict
from srd.data.digits import DigitImages
from srd.errors import exit_code

torch.set_num_threads(1)


class Outcome(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def train(output: Path, *more: str) -> Path:
    """DeiT-tiny on 30 digits: two epochs of three steps, then its folder."""
    main.run(
        [
            "--train-student", "--model=tiny", "--dataset=digits", "--distillation=none",
            f"--output={output}", "--name=student", "--device=cpu", "--batch-size=10", "--epochs=2",
            "--set=model.image_size=32", "--set=data.images_per_class=3", "--set=data.workers=0",
            "--set=optim.lr=0.02", "--set=optim.warmup_epochs=0", "--set=augment.rand_augment=",
            "--set=data.eval_crop=0.9", "--set=data.mean=[0.4,0.5,0.6]",
            "--set=data.eval_interpolation=bicubic", *more,
        ]
    )  # fmt: skip
    return output / "student"


@pytest.fixture(scope="session")
def deit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the DeiT half, with settings that are not the defaults."""
    return train(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def deit_folder(deit_run: Path) -> Path:
    """What `srd export` makes of it, in all formats."""
    folder = deit_run.parent / "exported"
    export.run([str(deit_run), f"--output={folder}"])
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six digits that no training saw, as PNG files, two of them in a folder further down."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more" / "deep").mkdir(parents=True)
    digits = DigitImages("val")
    places = ["a.png", "b.PNG", "c.png", "more/d.png", "more/deep/e.png", "more/deep/f.png"]
    for place, index in zip(places, range(0, 500, 90), strict=True):
        image, _ = digits.load(index)
        image.resize((13, 9)).save(folder / place, format="PNG")  # not square: crops show
    return [folder / place for place in places]


def as_command(run: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = exit_code(lambda: run([str(argument) for argument in arguments]))
        return Outcome(code, *capsys.readouterr())

    return command


@pytest.fixture
def exporting(capsys: pytest.CaptureFixture[str]) -> Command:
    """`exporting(...)` is `srd export ...`, in this process."""
    return as_command(export.run, capsys)


@pytest.fixture
def predicting(capsys: pytest.CaptureFixture[str]) -> Command:
    """`predicting(...)` is `srd predict ...`, in this process."""
    return as_command(predict.run, capsys)


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[..., str]:
    """Runs a script in an interpreter that has the installed packages, and nothing of this project.

    Isolated (-I), without site (-S), whose .pth files would bring an editable install in, and without
    leaving anything behind (-B).
    """
    packages = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    header = (
        f"import sys\nsys.path += {list(packages)!r}\n"
        "from importlib.util import find_spec\n"
        "assert not any(find_spec(name) for name in ('srd', 'deit', 'resnet'))\n"
    )

    def run(script: str, *arguments: Any) -> str:
        path = tmp_path / "script.py"
        path.write_text(header + script)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", str(path), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
