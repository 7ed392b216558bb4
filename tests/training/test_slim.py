"""--slim: what is left is enough for everything but going on; and a stopped run says what it is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deit import main
from srd.config.fields import Teacher
from srd.files.checkpoint import load_weights
from srd.models.frozen import Normalization
from srd.models.teacher import load_teacher
from srd.run.folder import RunFolder
from tests.narrow import narrow
from tests.training.test_resume import arguments

LEFT = {"config.yaml", "log.txt", "metrics.jsonl", "predictions.json", "result.json",
        "student.safetensors", "tensorboard"}  # fmt: skip
ALONE = ("--train_teacher", "--teacher=test_byobnet", "--set=data.mean=[0.4,0.4,0.4]",
         "--epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def slim(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, open_run: Callable[[Path], Any]
) -> Any:
    output = tmp_path_factory.mktemp("slim")
    with narrow():
        main.run(arguments(recipe, output, "--epochs=1", "--slim"))
    return open_run(output / "run")


def test_what_is_left(slim: Any) -> None:
    assert {path.name for path in slim.path.iterdir()} == LEFT
    closing = (slim.path / "log.txt").read_text().splitlines()[-1]
    assert f"{RunFolder(slim.path).size() / 1e6:.1f} MB, without checkpoints" in closing


@pytest.mark.usefixtures("narrow")
def test_it_is_evaluated_and_told_to_be_finished(slim: Any, recipe: Path, deit: Any) -> None:
    acc1 = f"acc1 {slim.result()['acc1']:.2f}"
    shown = deit(f"--checkpoint={slim.path}")
    assert shown.code == 0 and acc1 in shown.out
    again = deit(*arguments(recipe, slim.path.parent, "--epochs=1", "--slim"))
    assert again.code == 0 and "already finished" in again.out and acc1 in again.out
    assert not (slim.path / "checkpoints").exists()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("flag", [[], ["--extend"]], ids=str)
def test_it_cannot_go_on(slim: Any, recipe: Path, deit: Any, flag: list[str]) -> None:
    refused = deit(*arguments(recipe, slim.path.parent, "--epochs=3", *flag))
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "is slim" in refused.err and "train.epochs: 1 -> 3" in refused.err


@pytest.mark.usefixtures("narrow")
def test_the_closing_line_says_what_checkpoints_take_and_a_finished_run_is_slimmed(
    tmp_path: Path, recipe: Path, deit: Any
) -> None:
    command = arguments(recipe, tmp_path, "--epochs=1", "--distillation=none")
    told = deit(*command)
    assert "of them checkpoints, which --slim removes" in told.err
    again = deit(*command, "--slim")
    assert again.code == 0 and "without checkpoints, it takes" in again.out
    assert {path.name for path in (tmp_path / "run").iterdir()} == LEFT
    assert deit(*command).code == 0 and deit(f"--checkpoint={tmp_path / 'run'}").code == 0


def test_a_slim_teacher_says_what_its_images_and_classes_were(
    tmp_path: Path, recipe: Path, deit: Any
) -> None:
    text = json.loads(recipe.read_text())
    del text["teacher"]
    (tmp_path / "alone.yaml").write_text(json.dumps(text))
    command = [f"--config={tmp_path / 'alone.yaml'}", f"--output={tmp_path}", "--name=run"]
    told = deit(*command, *ALONE, "--slim")
    assert told.code == 0, told.err
    teacher = load_teacher(
        Teacher("test_byobnet", checkpoint=str(tmp_path / "run")),
        num_classes=10,
        image_size=16,
        given=Normalization((0.4, 0.4, 0.4), (0.229, 0.224, 0.225)),
    )
    assert teacher.class_names == [str(digit) for digit in range(10)]
    assert tuple(teacher.model.scale.flatten().tolist()) == (1.0, 1.0, 1.0)
    assert not teacher.model.shift.any()
    assert set(load_weights(tmp_path / "run" / "student.safetensors"))


def test_a_stopped_run_of_a_teacher_is_evaluated_as_what_it_is(
    tmp_path: Path, recipe: Path, deit: Any, strike: Any
) -> None:
    text = json.loads(recipe.read_text())
    del text["teacher"]
    (tmp_path / "alone.yaml").write_text(json.dumps(text))
    strike(lambda: os.kill(os.getpid(), signal.SIGTERM), 8)
    command = [f"--config={tmp_path / 'alone.yaml'}", f"--output={tmp_path}", "--name=run"]
    assert deit(*command, *ALONE[:3]).code == 143
    shown = deit(f"--checkpoint={tmp_path / 'run'}")
    assert shown.code == 0 and "test_byobnet with 10 classes at 16x16" in shown.out
