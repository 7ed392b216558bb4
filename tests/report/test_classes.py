"""What is counted from predictions, beside counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from srd.errors import UserError
from srd.report.classes import confusion, most_confused, per_class, student_and_teacher
from srd.run.predictions import (
    Predictions,
    Told,
    agreement,
    read_predictions,
    worth_a_look,
    write_predictions,
)
from tests.report.made import picture, write_told


def told(targets: list[int], classes: list[int], images: list[int] | None = None) -> Told:
    n = len(targets)
    return Told(
        images=np.array(images or range(n)),
        targets=np.array(targets),
        classes=np.array(classes),
        probabilities=np.linspace(0.5, 0.9, n),
    )


STUDENT = told([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2])
TEACHER = told([0, 1, 2], [0, 2, 2], images=[1, 3, 5])  # has seen half of them
BOTH = Predictions(
    class_names=["a", "b", "c", "unused"], names=[f"/x/{n}.jpg" for n in range(6)],
    student=STUDENT, teacher=TEACHER,
)  # fmt: skip


def test_agreement_is_on_what_both_have_seen() -> None:
    assert agreement(STUDENT, TEACHER) == pytest.approx(200 / 3)
    assert agreement(STUDENT, told([], [])) is None
    assert student_and_teacher(STUDENT, TEACHER) == {
        "both right": 1,
        "the teacher alone is right": 1,
        "the student alone is right": 0,
        "both wrong, with the same class": 1,
        "both wrong, with different classes": 0,
    }


def test_each_class_the_worst_first() -> None:
    rows = [(one.name, one.images, one.student, one.teacher) for one in per_class(BOTH)]
    assert rows == [("a", 2, 50.0, 100.0), ("b", 2, 50.0, 0.0), ("c", 2, 100.0, 100.0)]


def test_confusion_shows_the_most_confused() -> None:
    whole = confusion(STUDENT, BOTH.class_names)
    assert whole.counts.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    part = confusion(STUDENT, BOTH.class_names, most=2)
    assert (part.names, part.counts.tolist(), part.left_out) == (["a", "b"], [[1, 1], [0, 1]], 2)
    assert most_confused(STUDENT, BOTH.class_names) == [("a", "b", 1), ("b", "c", 1)]


def test_worth_a_look() -> None:
    assert worth_a_look(STUDENT, TEACHER, 9).tolist() == [1]  # images 3 and 5: the same class
    assert worth_a_look(STUDENT, None, 9).tolist() == [3, 1]  # the surest mistake first
    assert worth_a_look(STUDENT, None, 1).tolist() == [3]


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    assert read_predictions(path) is None
    written = write_told(tmp_path, ["a", "b|"])
    read = read_predictions(path)
    assert read is not None and read.names == written.names
    assert read.class_names == ["a", "b|"] and read.examples == written.examples
    for name in ("student", "teacher"):
        mine, theirs = getattr(read, name), getattr(written, name)
        assert np.array_equal(mine.classes, theirs.classes)
        assert np.allclose(mine.probabilities, theirs.probabilities, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"student": None, "examples": {0: b"<svg onload=alert(1)>"}},
        {"examples": {9: picture(0)}},
        {"student": told([0], [9])},
        {"student": told([0], [0], images=[77])},
        {"student": told([0, 0], [0, 0], images=[3, 3])},
    ],
)
def test_what_is_no_prediction_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "predictions.json"
    values = {"class_names": ["a", "b", "c"], "names": ["x", "y", "z", "w", "v", "u"]}
    write_predictions(path, Predictions(**{**values, "student": STUDENT, **change}))
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(path)
