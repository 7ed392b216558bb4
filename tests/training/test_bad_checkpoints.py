"""Files that are no checkpoint of this student: exit code 2, and one line that says how to go on."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deit.student import create_student
from tests.files.made import Hostile, as_zip, checkpoint, numbers, storage, tensor, zipped


def student(model: str = "tiny") -> bytes:
    return zipped({"model": create_student(model, num_classes=10, image_size=16).state_dict()})


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "html": (lambda: b"<!DOCTYPE html><html><head>Google Drive", "fetch the file again, by hand"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "cut": (lambda: student()[:-1000], "cut short"),
    "code": (lambda: zipped({"model": Hostile(eval, "1")}), "asks to run builtins.eval: refused"),
    "bomb": (
        lambda: as_zip(b"N", {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED),
        "compressed records",
    ),
    "claim": (
        lambda: as_zip(checkpoint(tensor(storage(9**9), numbers(9**9), numbers(1)))),
        "of a tensor is missing",
    ),
    "network": (lambda: zipped(nn.Linear(1, 1)), "nn.modules.linear.Linear: refused"),
    "other model": (lambda: zipped(nn.Linear(1, 1).state_dict()), "2 unexpected: weight, bias; "),
    "a tiny one": (student, "of another shape: cls_token (1, 1, 24) instead of (1, 1, 384)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint(
    tmp_path: Path, deit: Callable[..., Any], recipe: Path, narrow: None, kind: str
) -> None:
    write, words = BAD[kind]
    path = tmp_path / "a.pth"
    path.write_bytes(write())
    outcome = deit("--model=small", f"--config={recipe}", f"--checkpoint={path}")
    assert outcome.code == 2
    assert words in outcome.err and outcome.err.startswith(f"error: {path} ")
    assert outcome.err.count("\n") == 1 and len(outcome.err) < 500


def test_a_folder_without_a_run(tmp_path: Path, deit: Callable[..., Any], recipe: Path) -> None:
    outcome = deit("--model=tiny", f"--config={recipe}", f"--checkpoint={tmp_path}")
    assert outcome.code == 2 and "a folder, but not a run's" in outcome.err


def test_a_name_on_the_hub_without_a_network(
    deit: Callable[..., Any], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = deit("--model=tiny", f"--config={recipe}", "--checkpoint=hf-hub:me/student")
    assert outcome.code == 2 and "hf-hub:me/student: " in outcome.err
    assert "cannot be reached" in outcome.err and outcome.err.count("\n") == 1


def test_a_teacher_that_is_not_what_its_name_claims(
    tmp_path: Path, deit: Callable[..., Any], recipe: Path
) -> None:
    path = tmp_path / "regnety_160-a5fe301d.pth"
    torch.save({"model": {}}, path)
    outcome = deit("--model=tiny", f"--config={recipe}", "--train_student",
                   f"--teacher-checkpoint={path}", f"--output={tmp_path / 'runs'}")  # fmt: skip
    assert outcome.code == 2 and "not the file its name claims" in outcome.err
    assert "a5fe301d" in outcome.err and "download it again" in outcome.err


def test_what_is_beside_the_student_is_listed(
    tmp_path: Path, deit: Callable[..., Any], recipe: Path, narrow: None
) -> None:
    weights = create_student("tiny", num_classes=10, image_size=16).state_dict()
    more = {f"distillation_loss.embed.{name}": torch.ones(1) for name in ("weight", "bias")}
    torch.save({"model": {f"module.{k}": v for k, v in {**weights, **more}.items()}},
               tmp_path / "a.pth")  # fmt: skip
    outcome = deit("--model=tiny", f"--config={recipe}", f"--checkpoint={tmp_path / 'a.pth'}")
    assert outcome.code == 0, outcome.err
    for name in more:
        assert name in outcome.out + outcome.err
