"""Predictions of a run: written at each evaluation, kept over a stop, with pictures at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srd.evaluation.predictions import Recorder, thumbnail
from srd.run.folder import RunFolder
from srd.run.predictions import Told, agreement, read_predictions
from srd.training.comparison import Comparison, ValidationImages


def told(classes: list[int]) -> Told:
    n = len(classes)
    targets = np.zeros(n, dtype=np.int64)
    sure = np.full(n, 0.5)
    return Told(images=np.arange(n), targets=targets, classes=np.array(classes), probabilities=sure)


def comparison(folder: Path, anew: bool = False, names: str = "ab") -> Comparison:
    images = ValidationImages(count=4, class_names=[*names], name=lambda index: f"/x/{index}.png")
    return Comparison(RunFolder(folder), images, anew=anew)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorder_takes_each_image_down(dtype: torch.dtype) -> None:
    recorder = Recorder(6, torch.device("cpu"))
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=dtype)
    recorder.add(torch.tensor([4, 1]), torch.tensor([1, 1]), logits)
    said = recorder.told()
    assert said.images.tolist() == [1, 4] and said.targets.tolist() == [1, 1]
    assert said.classes.tolist() == [0, 1]
    assert said.probabilities == pytest.approx([0.7311, 0.8808], abs=1e-4)


def test_the_teacher_is_remembered_after_a_stop(tmp_path: Path) -> None:
    first = comparison(tmp_path, anew=True)
    assert first.keep(teacher=told([0, 1, 1, 0])) is None
    assert first.keep(student=told([0, 1, 0, 0])) == 75.0
    again = comparison(tmp_path)
    assert again.keep(student=told([0, 1, 1, 0])) == 100.0
    assert comparison(tmp_path, names="abc").keep(student=told([0] * 4)) is None  # other classes
    assert comparison(tmp_path, anew=True).keep(student=told([0] * 4)) is None


def test_a_damaged_file_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text("{")
    assert comparison(tmp_path).keep(student=told([0] * 4)) is None
    assert read_predictions(tmp_path / "predictions.json") is not None


def test_thumbnails(tmp_path: Path) -> None:
    from PIL import Image

    large = thumbnail(lambda _: Image.new("RGB", (400, 300)), 0)
    small = thumbnail(lambda _: Image.new("L", (8, 8)), 0)
    assert large is not None and large.startswith(b"\xff\xd8") and len(large) < 4000
    assert small is not None and small.startswith(b"\x89PNG")
    assert thumbnail(lambda _: 1 / 0, 0) is None  # type: ignore[arg-type, return-value]


@pytest.mark.usefixtures("narrow")
def test_what_a_run_leaves(tmp_path: Path, recipe: Path, deit: Any, open_run: Any) -> None:
    whole = "--set=data.select_fraction=null"
    done = deit("--train_student", "--config", recipe, "--output", tmp_path, "--name=run", whole)
    assert done.code == 0
    run = open_run(tmp_path / "run")
    kept = read_predictions(tmp_path / "run" / "predictions.json")
    assert kept is not None and kept.student is not None and kept.teacher is not None
    assert len(kept.names) == len(kept.student.images) == len(kept.teacher.images) == 500
    *_, last = run.rows("eval")
    right = 100 * (kept.student.classes == kept.student.targets).mean()
    assert last["acc1"] == pytest.approx(right)
    assert last["agreement"] == pytest.approx(agreement(kept.student, kept.teacher))
    assert run.result()["agreement"] == last["agreement"]
    assert len(kept.examples) == 16
    rows = run.rows("eval")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(0 < row["correlation"] < 1 and len(row["singular_values"]) == 24 for row in rows)
    assert rows[0]["singular_values"] != rows[1]["singular_values"]


@pytest.mark.usefixtures("narrow")
def test_a_student_alone(tmp_path: Path, recipe: Path, deit: Any, open_run: Any) -> None:
    command = ["--train_student", "--config", recipe, "--output", tmp_path, "--name=run"]
    assert deit(*command, "--distillation=none", "--epochs=1", "--warmup-epochs=0").code == 0
    kept = read_predictions(tmp_path / "run" / "predictions.json")
    assert kept is not None and kept.teacher is None and kept.examples
    run = open_run(tmp_path / "run")
    assert not {"agreement", "effective_rank"} & set(run.rows("eval")[0])
