"""A teacher is held against the data before the first step; a training may start from weights."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from srd.files.checkpoint import load_file
from srd.training import teaching


@pytest.fixture
def distil(recipe: Path, tmp_path: Path) -> list[str]:
    return ["--train_student", f"--config={recipe}", f"--output={tmp_path}", "--name=run",
            "--epochs=1", "--set=data.select_fraction=null"]  # fmt: skip


def saved(path: Path, classes: int, **more: Any) -> Path:
    torch.manual_seed(1)
    model = timm.create_model("test_byobnet", num_classes=classes)
    torch.save({"model": model.state_dict(), **more}, path)
    return path


@pytest.mark.usefixtures("narrow")
def test_a_teacher_near_chance_is_told_and_not_recorded(
    tmp_path: Path, distil: list[str], deit: Any, open_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "SAMPLE", 100)
    assert deit(*distil).code == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "on 100 images" in log and "test_byobnet is near chance (10 %)" in log
    assert not any("model" in row for row in open_run(tmp_path / "run").rows("eval"))


@pytest.mark.usefixtures("narrow")
def test_all_images_if_asked_for_and_none_if_not(
    tmp_path: Path, distil: list[str], deit: Any, open_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "SAMPLE", 100)
    assert deit(*distil, "--set=teacher.evaluate=true").code == 0
    [row] = [row for row in open_run(tmp_path / "run").rows("eval") if "model" in row]
    assert row["images"] == 500
    assert deit(*distil, "--name=not", "--set=teacher.evaluate=false").code == 0
    assert "chance" not in (tmp_path / "not/log.txt").read_text()


@pytest.mark.usefixtures("narrow")
def test_a_teacher_of_other_classes_teaches_without_its_logits(
    tmp_path: Path, distil: list[str], deit: Any, open_run: Any
) -> None:
    done = deit(*distil, f"--teacher-checkpoint={saved(tmp_path / 'three.pth', 3)}")
    assert done.code == 0
    rows = open_run(tmp_path / "run").rows("step")
    assert rows and all("repr" in row and "kl" not in row for row in rows)
    assert "by its features alone" in (tmp_path / "run/log.txt").read_text()


def test_a_teacher_of_classes_with_other_names(
    tmp_path: Path, distil: list[str], deit: Any
) -> None:
    first = [str(digit) for digit in range(9)]
    for names, told in (([*first, "ten"], "its 'ten' is '9' in"), (first, "its 'none' is '9' in")):
        config = {"identity": {"class_names": names}}
        file = saved(tmp_path / "other.pth", 10, config=config)
        done = deit(*distil, f"--teacher-checkpoint={file}")
        assert done.code == 2 and told in done.err
        assert not (tmp_path / "run").exists()


def test_a_teacher_starts_from_weights_of_other_classes(
    tmp_path: Path, recipe: Path, deit: Any
) -> None:
    file = saved(tmp_path / "seven.pth", 7)
    common = ["--train_teacher", "--teacher=test_byobnet", f"--config={recipe}", "--epochs=1",
              f"--output={tmp_path}", "--set=optim.lr=1e-12", "--set=optim.warmup_lr=0"]  # fmt: skip
    assert deit(*common, "--name=anew").code == 0
    for flag in ("--init", "--teacher-checkpoint"):
        assert deit(*common, f"--name={flag[2:]}", f"{flag}={file}").code == 0
        assert "starts from" in (tmp_path / flag[2:] / "log.txt").read_text()
    name = "stem.conv.weight"
    given = load_file(file)["model"][name]
    ends = {run: load_file(tmp_path / run / "checkpoints/last.pth")["model"][name]
            for run in ("anew", "init", "teacher-checkpoint")}  # fmt: skip
    assert torch.allclose(ends["init"], given, atol=1e-6)
    assert torch.equal(ends["init"], ends["teacher-checkpoint"])
    assert not torch.allclose(ends["anew"], given, atol=1e-2)


def test_another_start_is_another_recipe(tmp_path: Path, distil: list[str], deit: Any) -> None:
    alone = ["--distillation=none", "--model=test_byobnet"]
    assert deit(*distil, *alone).code == 0
    done = deit(*distil, *alone, f"--init={saved(tmp_path / 'seven.pth', 7)}")
    assert done.code == 2 and "model.init: None -> " in done.err


@pytest.mark.parametrize("begun", [False, True])
def test_weights_to_start_from_that_are_not_there_leave_everything_as_it_was(
    tmp_path: Path, distil: list[str], deit: Any, begun: bool
) -> None:
    alone = ["--distillation=none", "--model=test_byobnet"]
    if begun:
        assert deit(*distil, *alone).code == 0
    before = sorted(tmp_path.rglob("*"))
    done = deit(*distil, *alone, "--init=nowhere.pth", "--resume=none")
    assert done.code == 2 and "no checkpoint at nowhere.pth" in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_was_begun_does_not_need_the_weights_that_it_started_from(
    tmp_path: Path, distil: list[str], deit: Any, strike: Any
) -> None:
    file = saved(tmp_path / "seven.pth", 7)
    command = [*distil, "--distillation=none", "--model=test_byobnet", "--epochs=2",
               f"--init={file}"]  # fmt: skip
    strike(lambda: signal.raise_signal(signal.SIGTERM), 3)
    assert deit(*command).code == 143
    file.unlink()
    done = deit(*command)
    assert done.code == 0 and "starts from" not in done.err


def test_a_teacher_of_other_classes_is_not_evaluated(
    tmp_path: Path, recipe: Path, deit: Any, random_teacher: Path
) -> None:
    """Its head for these classes would be a random one."""
    done = deit(f"--config={recipe}", "--model=test_byobnet", f"--checkpoint={random_teacher}",
                f"--teacher-checkpoint={saved(tmp_path / 'three.pth', 3)}",
                "--set=teacher.evaluate=true")  # fmt: skip
    assert done.code == 2 and "no head for the 10 classes" in done.err
