"""`srd report`: one row for all seeds, what is damaged is named, three files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from srd.commands.report import run
from srd.errors import UserError
from tests.report.made import write_run

pytest.importorskip("matplotlib")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    alone = {"distill.loss": {"name": "none"}}
    write_run(tmp_path / "alone_seed0", [50.0, 60.0], settings={"seed": 0, **alone}, method="none")
    write_run(
        tmp_path / "alone_seed1", [40.0, 70.0, 62.0], settings={"seed": 1, **alone}, seconds=20.0
    )
    write_run(
        tmp_path / "digits_teacher", [98.0], settings={"teacher.name": "regnety_002"},
        trained="teacher", model="regnety_002",
    )  # fmt: skip
    write_run(tmp_path / "going", [30.0], finished=False)
    return tmp_path


def test_the_files(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(runs)])
    lines = (runs / "report.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[:5]] == [
        "| run", "| ---", r"| digits\_teacher".replace("\\", ""), "| alone", "| going",
    ]  # fmt: skip
    assert "| 2 | 61.0 ± 1.4 | 48.3 to 73.7 | 65.0 ± 7.1 |" in lines[3]
    assert lines[3].endswith("| 2 to 3 | 15 | finished |")
    assert lines[4].endswith("| unfinished: epoch 1 of 300 |")
    assert lines[3] in capsys.readouterr().out
    with Image.open(runs / "report.png") as picture:
        assert picture.format == "PNG" and picture.size[0] == 1430
        assert len(set(picture.convert("RGB").resize((143, 100)).getdata())) > 20  # not blank
    assert (runs / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_several_folders_and_another_place(runs: Path, tmp_path: Path) -> None:
    chosen = [str(runs / "going"), str(runs / "alone_seed1"), str(runs / "going")]
    run([*chosen, "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("\n| ") == 3 and "alone" in text and "going" in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", "{", "is no run's result: it has neither acc1"),
        ("result.json", '{"model": "x"}', "it has neither acc1"),
        ("metrics.jsonl", '{\n{"kind": "eval", "epoch": 0, "acc1": 1}', "line 1 is no row"),
        ("metrics.jsonl", '{"kind": "eval", "epoch": 0}\n', "an evaluation without acc1"),
        ("predictions.json", "{}", r"predictions\.json is damaged"),
        ("result.json", '{"distance": 1, "best_distance": 1}', "without acc1, or distance"),
        *(
            ("metrics.jsonl", f'{{"kind": "eval", "epoch": 0, "acc1": {acc1}}}\n{{', "without acc1")
            for acc1 in ("1e308", "-1", "1" * 400, "NaN", "true")
        ),
        *(
            ("metrics.jsonl", f'{{"kind": "eval", "epoch": {epoch}}}\n{{}}\n', "line 1 is no row")
            for epoch in ("-1", "1" * 400, "true")
        ),
    ],
)
def test_a_damaged_run_is_named(runs: Path, file: str, content: str, message: str) -> None:
    (runs / "alone_seed0" / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        run([str(runs)])
    assert str(runs / "alone_seed0") in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_that_is_being_written(runs: Path) -> None:
    with (runs / "going" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "ep')
    run([str(runs)])


def test_numbers_of_any_size_are_left_out(runs: Path) -> None:
    row = {"kind": "epoch", "epoch": 1, "step": 9, "lr": -1e308, "loss": 10**400}
    with (runs / "going" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps({**row, "kind": "eval", "acc1": 5.0}) + "\n")
    run([str(runs)])


def test_a_link_in_the_place_of_the_report_is_replaced(runs: Path, tmp_path: Path) -> None:
    (runs / "report.html").symlink_to(tmp_path / "elsewhere")
    run([str(runs)])
    assert not (tmp_path / "elsewhere").exists() and not (runs / "report.html").is_symlink()


def test_no_runs_and_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no run in"):
        run([str(tmp_path)])
    write_run(tmp_path / "new", [], finished=False)
    with pytest.raises(UserError, match="has been evaluated yet"):
        run([str(tmp_path)])
    with pytest.raises(UserError, match=r"taken is a file: name a folder"):
        (tmp_path / "taken").touch()
        run([str(tmp_path), "--output", str(tmp_path / "taken")])
    monkeypatch.setattr("srd.installed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"matplotlib: pip install '.*\[report\]'"):
        run([str(tmp_path)])
