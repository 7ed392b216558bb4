"""`srd report`: seeds become one row, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from srd.commands.report import collect, run
from srd.errors import UserError


def write_run(folder: Path, acc1: list[float], **changes: Any) -> None:
    """What a run of as many epochs leaves that the report reads."""
    folder.mkdir(parents=True)
    teacher = {"kind": "eval", "model": "teacher", "epoch": 0, "acc1": 99.0}
    rows = [{"kind": "eval", "epoch": epoch, "acc1": value} for epoch, value in enumerate(acc1)]
    lines = [teacher, *rows, {"kind": "step", "step": 0, "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    result = {
        "model": "deit_tiny", "train_images": 100, "images": 500, "acc1": acc1[-1],
        "best_acc1": max(acc1), "seconds": 10.0, **changes,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "alone_seed0", [50.0, 60.0])
    write_run(tmp_path / "alone_seed1", [40.0, 70.0, 62.0], seconds=20.0)
    write_run(tmp_path / "digits_teacher", [98.0], model="regnety_002", train_images=1297)
    (tmp_path / "stopped").mkdir()  # a run without a result is not finished
    return tmp_path


def test_the_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run([str(runs)])
    rows = (runs / "report.md").read_text().splitlines()[2:]
    assert rows == [
        "| teacher | regnety_002 | 1297 images | 98.0 (n=1) | 98.0 (n=1) | 10 |",
        "| alone | deit_tiny | 100 images | 61.0 ± 1.4 (n=2) | 65.0 ± 7.1 (n=2) | 15 |",
    ]
    assert rows[1] in capsys.readouterr().out
    with Image.open(runs / "report.png") as picture:
        assert picture.format == "PNG" and picture.size == (1430, 546)
        assert len(set(picture.convert("RGB").resize((143, 54)).getdata())) > 20  # not blank


def test_curves_are_the_students_by_epoch(runs: Path) -> None:
    groups = collect(runs)
    assert list(groups) == ["teacher", "alone"]
    assert [dict(one.curve) for one in groups["alone"]] == [
        {1: 50.0, 2: 60.0}, {1: 40.0, 2: 70.0, 3: 62.0},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", "{", "is no run's result: it has no model"),
        ("result.json", '{"model": "x"}', "it has no train_images"),
        ("metrics.jsonl", "{", "metrics.jsonl is damaged"),
        ("metrics.jsonl", '{"kind": "eval"}', "metrics.jsonl is damaged"),
    ],
)
def test_a_damaged_run_is_named(runs: Path, file: str, content: str, message: str) -> None:
    (runs / "alone_seed0" / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        run([str(runs)])
    assert str(runs / "alone_seed0") in str(caught.value) and "\n" not in str(caught.value)


def test_no_runs_and_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no finished run in"):
        run([str(tmp_path)])
    monkeypatch.setattr("srd.installed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"matplotlib: pip install '.*\[report\]'"):
        run([str(tmp_path)])
