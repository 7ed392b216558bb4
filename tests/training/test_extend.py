"""--extend: a run goes on under other settings, which are named, kept and told; others are refused."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deit import main
from srd.files.checkpoint import load_file
from tests.narrow import narrow
from tests.training.test_resume import arguments

pytestmark = pytest.mark.usefixtures("narrow")


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A finished run of two epochs of six steps."""
    output = tmp_path_factory.mktemp("two_epochs")
    with narrow():
        main.run(arguments(recipe, output))
    return output / "run"


@pytest.fixture
def finished(tmp_path: Path, two_epochs: Path, open_run: Callable[[Path], Any]) -> Any:
    """A copy of it in `tmp_path`."""
    shutil.copytree(two_epochs, tmp_path / "run")
    return open_run(tmp_path / "run")


def files(path: Path) -> dict[str, bytes]:
    found = (file for file in path.rglob("*") if file.is_file() and file.name != "log.txt")
    return {str(file): file.read_bytes() for file in found if "tfevents" not in file.name}


def test_a_finished_run_goes_on_with_more_epochs_and_another_learning_rate(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any
) -> None:
    before = finished.rows()
    more = deit(*arguments(recipe, tmp_path, "--epochs=4", "--lr=0.02", "--extend"))
    assert more.code == 0, more.err
    for change in ("train.epochs: 2 -> 4", "optim.lr: 0.01 -> 0.02"):
        assert f"extended in epoch 3: {change}" in more.err
        assert f"# extended in epoch 3: {change}\n" in (finished.path / "config.yaml").read_text()
    assert "spans all 4 epochs" in more.err
    result = finished.result()
    changed = ["optim.lr: 0.01 -> 0.02", "train.epochs: 2 -> 4"]
    record = {"from_epoch": 2, "step": 0, "updates": 12, "images": 120, "changed": changed}
    assert result["extended"] == [record]
    assert (result["epochs"], result["updates"], result["images_trained"]) == (4, 24, 240)
    rows = finished.rows()
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(24))
    old = [row for row in before if row["step"] < 12]  # the last epoch's means are told again
    assert [row for row in rows if row["step"] < 12] == old
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [0, 1, 2, 3]
    again = deit(*arguments(recipe, tmp_path, "--epochs=4", "--lr=0.02", "--extend"))
    assert again.code == 0 and "already finished" in again.out


@pytest.mark.slow
def test_the_schedule_spans_the_new_epochs_as_if_from_the_start(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any, open_run: Any
) -> None:
    changed = ("--epochs=4", "--lr=0.02")
    assert deit(*arguments(recipe, tmp_path, *changed, "--extend")).code == 0
    assert deit(*arguments(recipe, tmp_path / "whole", *changed)).code == 0
    whole = open_run(tmp_path / "whole" / "run").rows("step")
    rates = [row["lr"] for row in finished.rows("step")]
    assert rates[12:] == [row["lr"] for row in whole[12:]] and rates[11] != whole[11]["lr"]


@pytest.mark.slow
def test_more_epochs_of_the_same_rates_are_a_run_of_so_many_from_the_start(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any
) -> None:
    """A step schedule does not know how long the run is: both ways end in the same bits."""
    steps = ("--set=optim.schedule=step", "--set=optim.decay_epochs=[2]",
             "--set=optim.decay_rate=0.1")  # fmt: skip
    assert deit(*arguments(recipe, tmp_path, *steps, "--epochs=2")).code == 0
    assert deit(*arguments(recipe, tmp_path, *steps, "--epochs=3", "--extend")).code == 0
    assert deit(*arguments(recipe, tmp_path / "whole", *steps, "--epochs=3")).code == 0
    run, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole" / "run")
    assert run.rows() == whole.rows()
    mine, theirs = run.state()["model"], whole.state()["model"]
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_without_the_flag_it_is_refused_and_the_flag_is_named(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any
) -> None:
    refused = deit(*arguments(recipe, tmp_path, "--epochs=4"))
    assert refused.code == 2 and "train.epochs: 2 -> 4" in refused.err and "--extend" in refused.err
    assert (finished.path / "result.json").exists()


@pytest.mark.parametrize("step", [6, pytest.param(9, marks=pytest.mark.slow)])
def test_an_extended_run_that_stops_goes_on_to_the_same_bits(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, two_epochs: Path, step: int
) -> None:
    """With the flag, and without: the run is one of its new settings by then.

    Of the new batch, an epoch has three steps: the first of the new ones are 6 and 9.
    """
    changed = ("--epochs=4", "--lr=0.02", "--batch-size=20")
    for name in ("whole", "parts", "more"):
        shutil.copytree(two_epochs, tmp_path / name / "run")
    assert deit(*arguments(recipe, tmp_path / "whole", *changed, "--extend")).code == 0
    whole = open_run(tmp_path / "whole" / "run")
    for name, flag in (("parts", ["--extend"]), ("more", [])):
        strike(sigterm, step)
        command = arguments(recipe, tmp_path / name, *changed)
        assert deit(*command, "--extend").code == 143
        assert deit(*command, *flag).code == 0
        parts = open_run(tmp_path / name / "run")
        parts.assert_same(whole)
        assert parts.result()["extended"] == whole.result()["extended"]


def test_killed_before_its_next_step_it_is_extended_all_the_same(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments(recipe, tmp_path, "--epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr("srd.training.loop.Loop.fit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            deit(*command, "--extend")
    assert not (finished.path / "result.json").exists()
    assert deit(*command).code == 0
    assert [r["from_epoch"] for r in finished.result()["extended"]] == [2]


def test_another_batch_in_the_middle_of_an_epoch_begins_the_next_one(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any
) -> None:
    strike(sigterm, 3)
    assert deit(*arguments(recipe, tmp_path)).code == 143
    more = deit(*arguments(recipe, tmp_path, "--epochs=3", "--batch-size=20", "--extend"))
    assert more.code == 0, more.err
    assert "epoch 1 was stopped after 4 steps" in more.err and "goes on with epoch 2" in more.err
    run = open_run(tmp_path / "run")
    result = run.result()
    assert (result["updates"], result["images_trained"]) == (4 + 2 * 3, 40 + 6 * 20)
    assert result["extended"][0]["from_epoch"] == 1 and result["extended"][0]["updates"] == 4
    assert [(row["epoch"], row["step"]) for row in run.rows("step")] == [
        *((0, n) for n in range(4)), *((1, n) for n in range(4, 7)), *((2, n) for n in range(7, 10)),
    ]  # fmt: skip
    assert [row["epoch"] for row in run.rows("eval")] == [1, 2]


@pytest.mark.slow
def test_another_rate_in_the_middle_of_an_epoch_goes_on_where_it_was(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, strike: Any
) -> None:
    strike(sigterm, 3)
    assert deit(*arguments(recipe, tmp_path)).code == 143
    more = deit(*arguments(recipe, tmp_path, "--lr=0.02", "--extend"))
    assert more.code == 0 and "was stopped after" not in more.err
    run = open_run(tmp_path / "run")
    assert run.result()["updates"] == 12 and [r["epoch"] for r in run.rows("eval")] == [0, 1]
    assert run.result()["extended"][0]["step"] == 4


@pytest.mark.slow
def test_a_run_is_extended_again_and_again(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any
) -> None:
    assert deit(*arguments(recipe, tmp_path, "--epochs=3", "--batch-size=20", "--extend")).code == 0
    assert deit(*arguments(recipe, tmp_path, "--epochs=4", "--batch-size=30", "--extend")).code == 0
    result = finished.result()
    assert [r["from_epoch"] for r in result["extended"]] == [2, 3]
    assert [r["updates"] for r in result["extended"]] == [12, 15]
    assert (result["updates"], result["images_trained"]) == (17, 120 + 60 + 60)


def test_other_images_and_another_teacher_are_taken(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any, random_teacher: Path
) -> None:
    weights = torch.load(random_teacher)
    weights["model"]["head.fc.bias"] += 1
    torch.save(weights, tmp_path / "other.pth")
    more = deit(
        *arguments(recipe, tmp_path, "--epochs=3", "--set=data.images_per_class=8", "--extend"),
        f"--teacher-checkpoint={tmp_path / 'other.pth'}",
    )
    assert more.code == 0, more.err
    for name in ("data.images_per_class: 6 -> 8", "identity.train_images: 60 -> 80",
                 "identity.teacher_sha256: "):  # fmt: skip
        assert f"extended in epoch 3: {name}" in more.err
    assert finished.result()["updates"] == 12 + 8


def test_another_measure_looks_for_the_best_anew(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any
) -> None:
    more = deit(*arguments(recipe, tmp_path, "--epochs=3", "--set=data.eval_crop=0.5", "--extend"))
    assert more.code == 0 and "looked for anew" in more.err
    result = finished.result()
    new = [row for row in finished.rows("eval") if row["epoch"] >= 1]
    assert result["best_acc1"] == max(row["acc1"] for row in new)


@pytest.mark.parametrize(
    "more, named",
    [
        (["--model=test_resnet"], "model.name: tiny -> test_resnet"),
        (["--set=optim.name=lamb"], "optim.name: adamw -> lamb"),
        (["--image-size=32"], "pos_embed"),
        (["--distillation=vkd"], "distillation_loss"),
        (["--distillation=none"], "distillation_loss"),
        (["--teacher=test_vit", "--teacher-checkpoint={other}"], "distillation_loss"),
        (["--epochs=2", "--lr=0.02"], "give more --epochs"),
        (["--epochs=1"], "give more --epochs"),
        (["--epochs=4", "--resume=none"], "leave one out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_change_is_named_and_nothing_is_touched(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any, more: list[str], named: str
) -> None:
    import timm

    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_vit", num_classes=10, img_size=160).state_dict(), other)
    before = files(finished.path)
    more = [text.format(other=other) for text in more]
    refused = deit(*arguments(recipe, tmp_path, "--epochs=4", *more, "--extend"))
    assert refused.code == 2 and named in refused.err, refused.err
    assert "Traceback" not in refused.err
    assert files(finished.path) == before


def test_nothing_to_extend(tmp_path: Path, recipe: Path, deit: Any) -> None:
    refused = deit(*arguments(recipe, tmp_path, "--extend"))
    assert refused.code == 2 and "no run" in refused.err and not (tmp_path / "run").exists()
    evaluated = deit("--extend", "--checkpoint=anything")
    assert evaluated.code == 2 and "extend has no effect" in evaluated.err


def test_a_checkpoint_is_extended_in_another_folder(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any, open_run: Any
) -> None:
    best = finished.checkpoints / "last.pth"
    more = ("--epochs=3", "--lr=0.02", f"--resume={best}", "--extend")
    before = files(finished.path)
    assert deit(*arguments(recipe, tmp_path / "other", *more)).code == 0
    assert files(finished.path) == before
    assert open_run(tmp_path / "other" / "run").result()["updates"] == 18


def test_a_checkpoint_of_an_earlier_version_is_extended(
    tmp_path: Path, recipe: Path, deit: Any, finished: Any
) -> None:
    for name in ("last.pth", "last.1.pth", "best.pth"):
        state = load_file(finished.checkpoints / name)
        del state["steps"], state["batch_size"]
        torch.save(state, finished.checkpoints / name)
    more = deit(*arguments(recipe, tmp_path, "--epochs=3", "--batch-size=20", "--extend"))
    assert more.code == 0
    assert finished.result()["images_trained"] == 120 + 60
