"""Benchmarks: every one runs, with sizes at which its numbers say nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest
import torch

from srd.bench import cache, evaluation, images, pages, saving, start, step
from srd.bench.machine import machine, matrix_rate, memory_rate
from srd.bench.timing import SIZES, Line, Sizes, in_turn, spread
from srd.commands.bench import run
from srd.errors import UserError
from srd.installed import registered

CPU = torch.device("cpu")
TINY = SIZES["tiny"]


def test_calls_are_timed_in_turn() -> None:
    calls: list[str] = []
    names = ("ours", "reference")
    times = in_turn({name: lambda name=name: calls.append(name) for name in names}, seconds=0)
    assert calls == [*names] * 4 and [len(times[name]) for name in names] == [3, 3]
    assert all(second >= 0 for seconds in times.values() for second in seconds)
    assert len(in_turn({"ours": lambda: None}, seconds=0.05)["ours"]) > 3


def test_a_line_is_its_medians() -> None:
    line = Line(name="a: b", ours=[3.0, 1.0, 2.0], reference=[4.0, 5.0, 4.0], floor=0.5, items=8)
    assert line.ratio == 0.5 and line.row()["items_per_second"] == 4
    assert spread([1.0]) == 0 and spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.5)
    row = pages.row(line)
    assert "2,000.0 ms" in row and "| 0.50 |" in row and "(4.00)" in row


def test_the_machine_is_told_and_measured(tmp_path: Path) -> None:
    about = machine(CPU)
    assert about["cores"] and about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert matrix_rate(CPU) > 1e8 and memory_rate(CPU) > 1e7
    pages.write(tmp_path / "all.json", [Line(name="a", ours=[1.0], reference=[])], about)
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["lines"][0]["ratio"] is None and content["machine"]["cores"] == about["cores"]


@pytest.mark.parametrize(
    "module",
    [images, evaluation, saving, pytest.param(cache, marks=pytest.mark.slow)],
    ids=lambda m: m.__name__,
)
def test_each_runs(module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(module.measure(TINY, CPU))
    assert lines and all(min(line.ours) > 0 and line.ratio for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_both_steps_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list(step.measure(TINY, CPU))
    assert [("alone" in line.name, line.floor > 0) for line in lines] == [
        (False, True),
        (True, True),
    ]


def test_the_pictures_are_as_large_as_imagenets(tmp_path: Path) -> None:
    images.write_pictures(tmp_path, 3)
    sizes = [file.stat().st_size for file in tmp_path.glob("train/*/*.jpg")]
    assert len(sizes) == 3 and 80_000 < median(sizes) < 110_000


@pytest.mark.skipif(not find_spec("torchdistill"), reason="needs torchdistill")
def test_torchdistills_box_runs_beside_ours() -> None:
    from resnet import bench

    small = Sizes(seconds=0, image_size=32, batch_size=4, resnets=("resnet18", "resnet18"))
    (line,) = bench.measure(small, CPU)
    assert line.ratio and line.floor


@pytest.mark.slow
def test_commands_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(start.measure(TINY, CPU))) == 3


def test_a_process_is_timed_to_its_end_or_until_it_has_said_something(tmp_path: Path) -> None:
    said = tmp_path / "said"
    busy = f"print(sum(range(1_000_000)), file=open({str(said)!r}, 'w'), flush=True)"
    sleeps = start.Process(f"{busy}; import time; time.sleep(600)", until=said)
    sleeps()
    sleeps()
    assert len(sleeps.seconds) == 2 and min(sleeps.seconds) > 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        start.Process("1 / 0", until=said)()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'step'"):
        run(["stpe"])
    with pytest.raises(UserError, match="--device tpu"):
        run(["eval", "--device=tpu"])
    with pytest.raises(UserError, match="--batch-size 0"):
        run(["step", "--batch-size=0"])
    with pytest.raises(UserError, match="--gpu and --device cpu"):
        run(["save", "--gpu", "--device=cpu"])
    for where in ("", "/", "/proc/1/none/x.json", "pyproject.toml/x.json"):
        with pytest.raises(UserError, match=f"--json {where}: cannot write there"):
            run(["save", "--tiny", f"--json={where}"])
    assert {"data", "step", "processes", "save", "eval", "start"} <= set(registered("srd.benches"))


def test_the_command_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["save", "--tiny", "--device=cpu", "--seconds=0.02", "--json=all.json"])
    shown = capsys.readouterr().out
    assert "| save: 1 MB, what a step waits |" in shown and "GFLOP/s" in shown
    assert shown.count("| what |") == 1 and "- save: reference: torch.save" in shown
    assert json.loads((tmp_path / "all.json").read_text())["lines"][1]["name"].startswith(
        "save: 1 MB, until"
    )
