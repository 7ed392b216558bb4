"""What a run's predictions tell: classes one by one, what is taken for what, student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srd.run.predictions import Predictions, Told, in_common

MOST_CLASSES = 20  # in a confusion matrix; and of the worst, and of the best, one by one


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its name, its images, and how many in a hundred each network knows."""

    name: str
    images: int
    student: float
    teacher: float | None


def per_class(predictions: Predictions) -> list[ClassAccuracy]:
    """Every class that has images, the worst of the student's first."""
    assert predictions.student is not None
    student, teacher = predictions.student, predictions.teacher
    own = _share_right(student, len(predictions.class_names))
    theirs = _share_right(teacher, len(predictions.class_names)) if teacher else None
    counts = np.bincount(student.targets, minlength=len(predictions.class_names))
    classes = [
        ClassAccuracy(
            name,
            int(counts[number]),
            own[number],
            None if theirs is None or np.isnan(theirs[number]) else theirs[number],
        )
        for number, name in enumerate(predictions.class_names)
        if counts[number]
    ]
    return sorted(classes, key=lambda one: one.student)


def _share_right(told: Told, classes: int) -> list[float]:
    """Percent of each class's images that are named right; NaN where it has none."""
    counts = np.bincount(told.targets, minlength=classes)
    right = np.bincount(told.targets[told.targets == told.classes], minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return list(map(float, 100 * right / counts))


@dataclass(frozen=True)
class Confusion:
    """How often an image of one class (row) is taken for another (column).

    Args:
        names: of the classes that are shown.
        counts: (n, n).
        left_out: classes that are not shown, because they are confused less.
    """

    names: list[str]
    counts: np.ndarray
    left_out: int


def confusion(told: Told, class_names: Sequence[str], most: int = MOST_CLASSES) -> Confusion:
    """The confusion matrix, of the `most` classes that have the most mistakes in them."""
    pairs, counts = _pairs(told, len(class_names))
    wrong = pairs[0] != pairs[1]
    mistakes = np.bincount(pairs[0][wrong], counts[wrong], minlength=len(class_names))
    mistakes += np.bincount(pairs[1][wrong], counts[wrong], minlength=len(class_names))
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:most])
    matrix = np.zeros((len(shown), len(shown)), dtype=np.int64)
    inside = np.isin(pairs[0], shown) & np.isin(pairs[1], shown)
    rows, columns = (np.searchsorted(shown, side[inside]) for side in pairs)
    matrix[rows, columns] = counts[inside]
    return Confusion(
        [class_names[number] for number in shown], matrix, len(class_names) - len(shown)
    )


def most_confused(
    told: Told, class_names: Sequence[str], most: int = 10
) -> list[tuple[str, str, int]]:
    """(class, what it is taken for, how often), the most frequent mistakes first."""
    pairs, counts = _pairs(told, len(class_names))
    order = np.argsort(-counts, kind="stable")
    first = [i for i in order if pairs[0][i] != pairs[1][i]][:most]
    return [(class_names[pairs[0][i]], class_names[pairs[1][i]], int(counts[i])) for i in first]


def _pairs(told: Told, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The (class, taken for) that occur, (2, n), and how often, (n,)."""
    codes, counts = np.unique(told.targets * classes + told.classes, return_counts=True)
    return np.stack(np.divmod(codes, classes)), counts


def student_and_teacher(student: Told, teacher: Told) -> dict[str, int]:
    """On the images that both have seen: who is right, in numbers of images."""
    own, theirs = in_common(student, teacher)
    right, taught = own.classes == own.targets, theirs.classes == theirs.targets
    same = own.classes == theirs.classes
    return {
        "both right": int((right & taught).sum()),
        "the teacher alone is right": int((~right & taught).sum()),
        "the student alone is right": int((right & ~taught).sum()),
        "both wrong, with the same class": int((~right & ~taught & same).sum()),
        "both wrong, with different classes": int((~right & ~taught & ~same).sum()),
    }
