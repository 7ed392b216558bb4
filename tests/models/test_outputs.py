"""What a network says: how wide it is."""

from __future__ import annotations

import pytest

from srd.errors import UserError
from srd.models.recorded import RecordedTeacher


def test_what_a_recorded_teacher_says_is_as_wide_as_its_records() -> None:
    shapes = {"features": (7,), "tokens": (4, 6), "maps": (5, 1, 1)}
    teacher = RecordedTeacher("t", "the cache", None, shapes)
    assert [teacher.width(reads, 32) for reads in ("features", "tokens", "maps")] == [7, 6, 5]
    with pytest.raises(UserError, match=r"the teacher's map in the cache has only 1"):
        teacher.width("maps", 32, positions=2)
    with pytest.raises(UserError, match="reads logits, and the cache holds none"):
        teacher.width("logits", 32)
