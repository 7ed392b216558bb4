"""Short runs with a teacher cache, and what they are compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deit import main
from srd.errors import exit_code
from tests.narrow import narrow

EXACT = "--set=cache.dtype=float32"
Train = Callable[..., Any]


def arguments(recipe: Path, output: Path, name: str, *more: object) -> list[str]:
    """A narrow student, twelve steps with mixup and cutmix, measured once."""
    return [
        "--train_student", f"--config={recipe}", f"--output={output}", f"--name={name}",
        "--device=cpu", "--set=train.evaluate_every=0", "--set=teacher.evaluate=false",
        *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def online(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> Any:
    """The run without a cache."""
    output = tmp_path_factory.mktemp("online")
    with narrow():
        assert exit_code(lambda: main.run(arguments(recipe, output, "run"))) == 0
    return open_run(output / "run")


@pytest.fixture(scope="session")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> tuple[Path, Any]:
    """A whole cache, exact, and the run that recorded it."""
    output = tmp_path_factory.mktemp("recorded")
    cache = output / "cache"
    with narrow():
        asked = arguments(recipe, output, "run", f"--teacher-cache={cache}", EXACT)
        assert exit_code(lambda: main.run(asked)) == 0
    return cache, open_run(output / "run")


@pytest.fixture
def cache(recorded: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the whole cache."""
    return Path(shutil.copytree(recorded[0], tmp_path / "cache"))


@pytest.fixture
def train(
    narrow: None, deit: Callable[..., Any], tmp_path: Path, recipe: Path, open_run: Any
) -> Train:
    """`train(name, flag, ...)` trains in <tmp>/runs; returns the outcome and the run."""

    def command(name: str, *more: object, recipe: Path = recipe) -> tuple[Any, Any]:
        outcome = deit(*arguments(recipe, tmp_path / "runs", name, *more))
        return outcome, open_run(tmp_path / "runs" / name)

    return command


@pytest.fixture
def without_teacher(recipe: Path, tmp_path: Path) -> Path:
    """The recipe, its teacher's file gone."""
    settings = json.loads(recipe.read_text())
    settings["teacher"]["checkpoint"] = str(tmp_path / "gone.pth")
    path = tmp_path / "without_teacher.yaml"
    path.write_text(json.dumps(settings))
    return path
