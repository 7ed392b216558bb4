"""Whole runs on the digits: what they leave, and that nothing is lost when they are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file as load_safetensors

from deit.student import create_student
from deit.task import StudentTask
from srd.checkpoint import load_file
from srd.log import read_metrics
from srd.loop import Loop
from tests.conftest import ROOT, Command, make_folder

NAME = "digits_deit_tiny_srd"


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, through containers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights, optimizer, schedule and projector, and the same rows but for speed."""
    a, b = (load_file(folder / "checkpoints/last.pth") for folder in (one, other))
    for part in ("model", "optimizer", "lr_scheduler"):
        assert_same(a[part], b[part])
    assert a["position"]["updates"] == b["position"]["updates"]
    assert_same(
        load_safetensors(one / "student.safetensors"),
        load_safetensors(other / "student.safetensors"),
    )
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    for run in rows:
        for row in run:
            row.pop("images_per_second", None)
    assert rows[0] == rows[1]


@pytest.fixture
def whole(small: list[str], tmp_path: Path, command: Command) -> Path:
    """A run that nothing disturbed."""
    assert command("--train_student", *small, "--name=whole") == 0
    return tmp_path / "whole"


def test_a_run_leaves_what_the_contract_says(
    whole: Path, small: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_metrics(whole / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(6))
    assert [row["epoch"] for row in steps] == [0, 0, 1, 1, 2, 2]
    for row in steps:
        assert row["loss"] == pytest.approx(row["ce"] + row["kl"] + row["repr"], rel=1e-5)
        assert row["grad_norm"] > 0 and row["lr"] > 0 and row["images_per_second"] > 0
    (measured,) = [row for row in rows if row["kind"] == "eval"]
    result = json.loads((whole / "result.json").read_text())
    assert (result["acc1"], result["acc5"], result["images"]) == (
        measured["acc1"],
        measured["acc5"],
        500,
    )
    assert {"seconds", "versions", "git_commit", "best_acc1", "epochs"} <= result.keys()
    assert list((whole / "tensorboard").glob("events.*"))
    assert "epoch 3/3" in (whole / "log.txt").read_text()
    create_student("tiny", 10, 32).load_state_dict(load_safetensors(whole / "student.safetensors"))
    state = load_file(whole / "checkpoints/best.pth")
    assert "distillation_loss.embed.weight" in state["model"]
    assert not any("teacher" in name or "head.fc" in name for name in state["model"])
    capsys.readouterr()
    assert command(*small, f"--checkpoint={whole / 'checkpoints/best.pth'}") == 0
    assert f"acc1 {result['acc1']:.2f}" in capsys.readouterr().out


def test_a_stop_inside_an_epoch_leaves_no_trace(
    whole: Path, small: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop.train_step

    def with_signal(loop: Loop, batch: Any, bar: Any) -> None:
        if loop.position.updates == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(loop, batch, bar)

    monkeypatch.setattr(Loop, "train_step", with_signal)
    assert command("--train_student", *small, "--name=halves") == 143
    monkeypatch.setattr(Loop, "train_step", step)
    assert load_file(tmp_path / "halves/checkpoints/last.pth")["position"]["step"] == 1
    assert command("--train_student", *small, "--name=halves", "--workers=2") == 0
    assert_same_run(whole, tmp_path / "halves")


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The real command, with two loader workers."""
    line = [
        sys.executable,
        str(ROOT / "deit/main.py"),
        "--train_student",
        *arguments,
        "--workers=2",
    ]
    return subprocess.Popen(
        line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
    )


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has told `count` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(read_metrics(path, "step")) >= count:
            return
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_process_goes_on_to_the_same_weights(
    number: int, code: int, small: list[str], tmp_path: Path, command: Command
) -> None:
    torch.set_num_threads(1)
    longer = [*small, "--epochs=6", "--set=train.save_every_steps=3"]
    assert command("--train_student", *longer, "--name=whole") == 0
    process = start([*longer, "--name=killed"])
    wait_for_rows(tmp_path / "killed/metrics.jsonl", 5, process)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode in (code, 0)  # 0: it had finished before the signal came
    assert command("--train_student", *longer, "--name=killed") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_run_again(
    whole: Path, small: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert command("--train_student", *small, "--name=whole") == 0
    assert "already finished" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_new_run_in_an_old_place_keeps_the_old_one(
    whole: Path, small: list[str], tmp_path: Path, command: Command
) -> None:
    assert command("--train_student", *small, "--name=whole", "--resume=none") == 0
    assert (tmp_path / "whole.1/result.json").exists()
    assert_same_run(whole, tmp_path / "whole.1")


def test_the_saved_configuration_runs_again(whole: Path, tmp_path: Path, command: Command) -> None:
    assert command("--train_student", f"--config={whole / 'config.yaml'}", "--name=again") == 0
    assert_same_run(whole, tmp_path / "again")


def test_a_changed_recipe_names_its_fields(
    whole: Path, small: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--train_student", *small, "--name=whole", "--set=optim.lr=1e-3") == 2
    assert "optim.lr: 0.0005 -> 0.001" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(
    whole: Path, small: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    last = whole / "checkpoints/last.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    (whole / "result.json").unlink()
    assert command("--train_student", *small, "--name=whole") == 0
    assert "last.pth is damaged" in capsys.readouterr().out
    assert (whole / "result.json").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update(
    small: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    losses, calls = StudentTask.losses, []

    def poisoned(self: StudentTask, *args: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *args)
        calls.append(1)
        if len(calls) == 4:
            found["kl"] = found["kl"] * float("nan")
            found["loss"] = found["loss"] + found["kl"]
        return found

    monkeypatch.setattr(StudentTask, "losses", poisoned)
    assert command("--train_student", *small, "--name=nan") == 1
    error = capsys.readouterr().err
    assert "kl is nan" in error and "epoch 1, step 3" in error and "Traceback" not in error
    state = load_file(tmp_path / "nan/checkpoints/last.pth")
    assert state["position"]["updates"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("method", ["kd", "none"])
def test_the_baselines_run(method: str, small: list[str], tmp_path: Path, command: Command) -> None:
    assert command("--train_student", *small, f"--distillation={method}") == 0
    row = read_metrics(tmp_path / f"digits_deit_tiny_{method}/metrics.jsonl", "step")[0]
    assert "repr" not in row and ("kl" in row) == (method == "kd")


def test_a_missing_teacher_is_trained_from_its_recipe(
    small: list[str], tmp_path: Path, command: Command
) -> None:
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(
        "name: teacher\nmodel: {image_size: 32}\n"
        "data: {dataset: digits, images_per_class: 2, workers: 0}\n"
        "teacher: {name: regnety_002}\ntrain: {epochs: 1, batch_size: 10}\n"
    )
    arguments = [a for a in small if not a.startswith("--teacher-checkpoint")]
    assert command("--train_student", *arguments, f"--set=teacher.recipe={recipe}") == 0
    teacher = load_file(tmp_path / "teacher/checkpoints/best.pth")["model"]
    timm.create_model("regnety_002", num_classes=10).load_state_dict(teacher)
    assert (tmp_path / NAME / "result.json").exists()


def test_micro_batches_give_the_losses_of_the_whole_batch(
    whole: Path, small: list[str], tmp_path: Path, command: Command
) -> None:
    assert command("--train_student", *small, "--name=micro", "--set=train.micro_batch=10") == 0
    rows = [read_metrics(path / "metrics.jsonl", "step") for path in (whole, tmp_path / "micro")]
    for a, b in zip(*rows, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_broken_files_stop_or_are_skipped_and_counted(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", {"a": 4, "b": 4}, {"a": 2, "b": 2})
    (data / "train/a/1.JPEG").write_bytes(b"not a picture")
    (data / "val/b/0.JPEG").write_bytes(b"")
    arguments = [
        "--train_student", f"--data-path={data}", "--distillation=none", "--batch-size=4", "--epochs=1",
        "--set=model.image_size=32", "--device=cpu", "--workers=1", f"--output={tmp_path}",
    ]  # fmt: skip
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(data / "train/a/1.JPEG") in error and "skip_broken" in error
    assert command(*arguments, "--set=data.skip_broken=true", "--resume=none") == 0
    result = json.loads((tmp_path / "deit_tiny_none/result.json").read_text())
    assert result["skipped_files"] == 2 and result["images"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "small"])
def test_imagenets_layout_at_224_with_the_papers_teacher(
    model: str, tmp_path: Path, command: Command
) -> None:
    names = {"n01440764": 4, "n01443537": 4}
    data = make_folder(tmp_path / "data", names, dict.fromkeys(names, 1), size=260)
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": timm.create_model("regnety_160", num_classes=2).state_dict()}, teacher)
    arguments = [
        "--train_student", f"--model={model}", f"--data-path={data}", "--teacher=regnety_160",
        f"--teacher-checkpoint={teacher}", "--batch-size=4", "--epochs=1", "--set=train.log_every=1",
        f"--output={tmp_path}", "--device=cpu", "--workers=2",
    ]  # fmt: skip
    assert command(*arguments) == 0
    rows = read_metrics(tmp_path / f"deit_{model}_srd/metrics.jsonl", "step")
    assert len(rows) == 2
