"""A manifest that no run has written is refused in a line, before anything is made room for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srd.cache.manifest import FORMAT, Manifest, Recorded, Shapes, check_same, read_manifest
from srd.errors import UserError

SHAPES = Shapes({"features": (12,), "logits": (5,)}, "float16", None, "float32", 10, 6)
WHOLE = Manifest(FORMAT, Recorded("regnety_160", "0" * 64, True), SHAPES, {"seed": 0}, {})


def deep(values: Any) -> None:
    for _ in range(200):
        values["recipe"] = {"x": values["recipe"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["shapes"]["fields"].update(features=[10**9]), "features.*no row of an image"),
        (lambda v: v["shapes"]["fields"].update(features=[]), "features.*no row of an image"),
        (lambda v: v["shapes"]["fields"].update(tokens=[1] * 9), "tokens.*no row of an image"),
        (lambda v: v["shapes"]["fields"].update(logits=[2, 5]), "logits.*no row of an image"),
        (lambda v: v["shapes"].update(steps=2**31 - 1), "an epoch of"),
        (lambda v: v["shapes"].update(steps=10**400), "shapes.steps"),
        (lambda v: v["shapes"].update(dtype="float8"), "float8"),
        (lambda v: v["shapes"].update(top_logits=5), "top_logits 5"),
        (lambda v: v.update(more=1), "more"),
        (deep, "nested too deeply"),
    ],
)
def test_what_no_teacher_says(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    values = json.loads(WHOLE.text())
    change(values)
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as refused:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(refused.value) and "record a new cache" in str(refused.value)


def test_what_a_difference_says_is_one_line(tmp_path: Path) -> None:
    values = json.loads(WHOLE.text())
    values["recipe"]["seed"] = "\n0\n" * 99
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    there = read_manifest(tmp_path)
    assert there is not None
    with pytest.raises(UserError, match="seed: 0 0 0") as refused:
        check_same(tmp_path, there, WHOLE)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
