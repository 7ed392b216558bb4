"""Seeds are folded, what differs becomes a column, intervals are Student's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from srd.report.groups import Spread, differences, fold
from srd.report.page import make_page
from srd.report.panels import as_png
from srd.report.runs import find_runs
from srd.report.table import markdown
from tests.report.made import write_run


def test_spread_is_students() -> None:
    values = [94.0, 95.5, 96.1, 93.0]
    spread = Spread.of(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert spread.n == 4 and spread.half is not None
    assert (spread.mean - spread.half, spread.mean + spread.half) == pytest.approx((low, high))
    assert spread.interval() == f"{low:.1f} to {high:.1f}"
    assert (str(Spread.of([3.0])), Spread.of([3.0]).interval()) == ("3.0", "one run")


def test_seeds_are_folded_and_values_are_columns(tmp_path: Path) -> None:
    for alpha in (2.0, 4.0):
        for seed in (0, 1, 2):
            write_run(
                tmp_path / f"a{alpha:g}_seed{seed}",
                [50.0 + seed, 60.0 + seed],
                settings={"seed": seed, "distill.loss.alpha": alpha, "data.workers": seed},
            )
    groups = fold(find_runs([tmp_path]))
    assert [(group.name, len(group.runs)) for group in groups] == [("a2", 3), ("a4", 3)]
    assert differences(groups) == {"distill.loss.alpha": ["2.0", "4.0"]}  # machines do not differ
    assert groups[0].last == Spread.of([60.0, 61.0, 62.0])
    assert groups[0].mean_curve("acc1") == {1: 51.0, 2: 61.0}


def test_one_run_twice_is_no_second_seed(tmp_path: Path) -> None:
    for name in ("before", "after"):
        write_run(tmp_path / name, [50.0], settings={"seed": 0})
    assert [len(group.runs) for group in fold(find_runs([tmp_path]))] == [1, 1]


def test_means_are_where_all_were_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "x_seed0", [1.0, 2.0, 3.0], settings={"seed": 0})
    write_run(tmp_path / "x_seed1", [3.0], settings={"seed": 1}, finished=False)
    (group,) = fold(find_runs([tmp_path]))
    assert group.mean_curve("acc1") == {1: 2.0} and group.last.mean == 3.0
    assert group.state == "finished; unfinished: epoch 1 of 300"


def test_a_teacher_of_the_same_file_is_another_group(tmp_path: Path) -> None:
    write_run(tmp_path / "student", [1.0], settings={"seed": 0})
    write_run(tmp_path / "taught", [2.0], settings={"seed": 1}, trained="teacher")
    groups = fold(find_runs([tmp_path]))
    assert [group.name for group in groups] == ["taught", "student"]
    assert differences(groups) == {"model.name": ["regnety_160.deit_in1k", "tiny"]}


def test_runs_of_torchdistills_files_are_folded_by_their_names(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path / f"alone_seed{seed}", [1.0 + seed], model="resnet18")
        (folder / "config.yaml").write_text("datasets: !import_call {key: x}")
    (group,) = fold(find_runs([tmp_path]))
    assert (group.name, len(group.runs), group.settings) == ("alone", 2, {"model.name": "resnet18"})


def test_many_settings_get_a_table_of_their_own(tmp_path: Path) -> None:
    many = {"optim.lr": 0.1, "optim.eps": 0.1, "optim.min_lr": 0.1, "optim.lr_batch": 1}
    write_run(tmp_path / "a", [1.0], settings={**many, "train.epochs": 7, "amp": "off"})
    write_run(tmp_path / "b|*x*", [1.0])
    text = markdown(fold(find_runs([tmp_path])))
    assert "| setting | a | b\\|\\*x\\* |" in text and "| optim.lr | 0.1 | 0.0005 |" in text


def test_runs_without_labels_are_told_by_their_distance(tmp_path: Path) -> None:
    for seed, distances in enumerate([[0.5, 0.25], [0.5, 0.35]]):
        folder = write_run(tmp_path / f"un_seed{seed}", [1.0, 1.0], settings={"seed": seed})
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [row for row in rows if row["kind"] == "eval" and "model" not in row]
        for row, distance in zip(measured, distances, strict=True):
            del row["acc1"], row["loss"]
            row["distance"] = distance
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = {"trained": "student", "distance": distances[-1], "best_distance": distances[-1]}
        (folder / "result.json").write_text(json.dumps({**told, "agreement": 80.0}))
    write_run(tmp_path / "labelled", [70.0])
    groups = fold(find_runs([tmp_path]))
    assert [group.labelled for group in groups] == [True, False]
    text = markdown(groups)
    assert "| 0.3000 ± 0.0707 |" in text and "| 80.0 ± 0.0 |" in text and "| 70.0 |" in text
    assert "Of pictures without labels" in text
    assert as_png(groups[1:]).startswith(b"\x89PNG")
    assert "Distance to the teacher" in make_page(groups, "both")
