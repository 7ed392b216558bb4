"""Whole runs: what is recorded is replayed to the bit, and what cannot be replayed is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srd.cache import recorder, shards
from srd.run.lock import Turn
from tests.cache.conftest import EXACT, Train, arguments

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, sys
import torch
from srd.data import augment
from deit import main
from srd.cache import shards
from srd.errors import exit_code
from tests.narrow import narrow

at = int(sys.argv[1])
mix = augment.Mix.__call__

def struck(self, images, targets, step):
    if step == at:
        os.kill(os.getpid(), 9)
    return mix(self, images, targets, step)

augment.Mix.__call__ = struck
shards.SHARD_STEPS = 2
torch.set_num_threads(1)
with narrow():
    sys.exit(exit_code(lambda: main.run(sys.argv[2:])))
"""


def shard_files(cache: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in cache.rglob("*.safetensors"))


def test_recording_is_the_online_run(recorded: tuple[Path, Any], online: Any) -> None:
    cache, run = recorded
    run.assert_same(online)
    assert shard_files(cache) == [
        f"epoch_000{epoch}/steps_000000_000006_rows_0of1.safetensors" for epoch in (0, 1)
    ]
    assert [path.name for path in cache.iterdir() if path.is_file()] == ["manifest.json"]


def test_replay_needs_no_teacher_and_is_the_online_run(
    cache: Path, online: Any, train: Train, without_teacher: Path
) -> None:
    outcome, run = train("replay", f"--teacher-cache={cache}", EXACT, recipe=without_teacher)
    assert outcome.code == 0 and "12 of 12 steps are there" in outcome.err
    run.assert_same(online)
    assert run.result()["teacher_sha256"] == online.result()["teacher_sha256"]


def test_a_cache_serves_other_losses_students_and_micro_batches(cache: Path, train: Train) -> None:
    more = [f"--teacher-cache={cache}", EXACT, "--epochs=1"]
    online, kd = (
        train(name, "--distillation=kd", "--epochs=1", *extra)[1]
        for name, extra in (("online", []), ("replayed", more))
    )
    kd.assert_same(online)
    small = ["--model=test_vit", "--distillation=vkd", "--set=distill.kl_weight=2"]
    small += ["--set=train.micro_batch=10", "--epochs=1"]
    online, vkd = (
        train(name, *small, *extra)[1] for name, extra in (("one", []), ("two", more[:2]))
    )
    vkd.assert_same(online)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--seed=1", "seed: 0 -> 1"),
        ("--batch-size=12", "batch_size: 10 -> 12"),
        ("--image-size=24", "image_size: 16 -> 24"),
        ("--set=augment.mixup=0.2", "augment.mixup: 0.8 -> 0.2"),
        ("--set=augment.flip=0", "augment.flip: 0.5 -> 0"),
        ("--set=data.images_per_class=7", "images: 60 -> 70"),
        ("--set=data.mean=[0.5,0.5,0.5]", "mean: [0.485"),
        ("--teacher=test_resnet", "teacher.name: test_byobnet -> test_resnet"),
        ("--set=teacher.image_size=32", "teacher_image_size: None -> 32"),
        ("--amp=bf16", "precision: float32 -> bfloat16"),
        ("--set=teacher.bf16=true", "teacher_precision: None -> bfloat16"),
        ("--set=data.pixels=fast", "pixels: released -> fast"),
        ("--set=cache.dtype=int8", "dtype: float32 -> int8"),
        ("--set=cache.top_logits=3", "top_logits: None -> 3"),
    ],
)
def test_what_was_recorded_otherwise_is_named(
    cache: Path, train: Train, flag: str, named: str
) -> None:
    outcome, run = train("other", f"--teacher-cache={cache}", EXACT, flag)
    assert outcome.code == 2 and named in outcome.err and "another --teacher-cache" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not run.path.exists()


def test_weights_of_another_teacher_are_named(
    cache: Path, train: Train, teacher_file: Path
) -> None:
    outcome, _ = train(
        "other", f"--teacher-cache={cache}", EXACT, f"--teacher-checkpoint={teacher_file}"
    )
    assert outcome.code == 2 and "teacher.sha256: " in outcome.err


def test_machine_differences_are_none(cache: Path, train: Train, online: Any) -> None:
    """Another place, other workers, label smoothing of the student's targets."""
    outcome, run = train(
        "workers",
        f"--teacher-cache={cache}",
        EXACT,
        "--workers=1",
        "--set=augment.label_smoothing=0",
    )
    assert outcome.code == 0 and run.rows() != online.rows()


def test_holes_without_a_teacher_are_told(cache: Path, train: Train, without_teacher: Path) -> None:
    shutil.rmtree(cache / "epoch_0001")
    outcome, run = train("holes", f"--teacher-cache={cache}", EXACT, recipe=without_teacher)
    assert outcome.code == 2 and "lacks 6 steps (from epoch 1, step 0 on)" in outcome.err
    assert not run.path.exists()


def test_holes_are_filled_beside_the_training(cache: Path, train: Train, online: Any) -> None:
    before = shard_files(cache)
    shutil.rmtree(cache / "epoch_0000")
    outcome, run = train("holes", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0 and "6 of 12 steps are there" in outcome.err
    assert "1,076 bytes a view" in outcome.err
    run.assert_same(online)
    assert shard_files(cache) == before


@pytest.mark.parametrize(
    "what",
    ["a bit", *(pytest.param(w, marks=pytest.mark.slow) for w in ("cut short", "another's name"))],
)
def test_damage_is_named_and_recorded_again(
    cache: Path, train: Train, online: Any, without_teacher: Path, what: str
) -> None:
    shard = cache / "epoch_0001/steps_000000_000006_rows_0of1.safetensors"
    if what == "a bit":
        data = bytearray(shard.read_bytes())
        data[-20_000] ^= 1
        shard.write_bytes(data)
    elif what == "cut short":
        os.truncate(shard, 60_000)
    else:
        shutil.copy(cache / "epoch_0000" / shard.name, shard)
    outcome, _ = train("without", f"--teacher-cache={cache}", EXACT, recipe=without_teacher)
    assert outcome.code == 2
    assert "lacks 6 steps" in outcome.err if what == "cut short" else str(shard) in outcome.err
    outcome, run = train("again", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0 and str(shard) in outcome.err
    run.assert_same(online)
    outcome, run = train("third", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0 and "damaged" not in outcome.err
    run.assert_same(online)


@pytest.mark.slow
def test_a_record_in_float16_is_the_run_that_replays_it(
    tmp_path: Path, train: Train, online: Any, without_teacher: Path
) -> None:
    for more in ([], ["--set=cache.dtype=int8", "--set=cache.top_logits=4"]):
        where = f"--teacher-cache={tmp_path / str(len(more))}"
        outcome, first = train(f"first{len(more)}", where, *more)
        assert outcome.code == 0 and "approximate: " in outcome.err
        outcome, second = train(f"second{len(more)}", where, *more, recipe=without_teacher)
        assert outcome.code == 0
        second.assert_same(first)
        losses = [run.rows("epoch")[-1]["loss"] for run in (first, online)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_views_repeat_after_k_epochs(tmp_path: Path, train: Train, cache: Path) -> None:
    more = ["--epochs=3", "--set=cache.epochs=1"]
    outcome, online = train("online", *more)
    assert outcome.code == 0
    outcome, replayed = train("replayed", *more, f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0 and "6 of 6 steps are there" in outcome.err
    replayed.assert_same(online)
    outcome, _ = train("longer", "--epochs=4", "--set=cache.epochs=1", f"--teacher-cache={cache}",
                       EXACT, "--distillation=none")  # fmt: skip
    assert outcome.code == 0 and "the loss none reads no teacher: no cache is used" in outcome.err
    outcome, _ = train("many", "--set=cache.epochs=3")
    assert outcome.code == 2 and "cache.epochs 3 is more than the 2 epochs" in outcome.err


def extended(runs: Path, name: str, run: Any, train: Train, *more: object) -> tuple[Any, Any]:
    """A copy of a finished run, gone on with."""
    shutil.copytree(run.path, runs / name)
    return train(name, "--extend", *more)


@pytest.mark.slow
def test_a_longer_run_replays_what_is_there_and_records_the_rest(
    tmp_path: Path, cache: Path, recorded: tuple[Path, Any], online: Any, train: Train
) -> None:
    runs, more = tmp_path / "runs", [f"--teacher-cache={cache}", EXACT]
    _, longer = extended(runs, "online", online, train, "--epochs=3")
    outcome, run = extended(runs, "cached", recorded[1], train, "--epochs=3", *more)
    assert outcome.code == 0 and "12 of 18 steps are there" in outcome.err
    run.assert_same(longer)
    assert "epoch_0002/steps_000000_000006_rows_0of1.safetensors" in shard_files(cache)
    outcome, _ = train("cached", "--extend", "--epochs=4", "--batch-size=20", *more)
    assert outcome.code == 2 and "batch_size: 10 -> 20" in outcome.err
    assert run.result()["epochs"] == 3


@pytest.mark.slow
def test_a_run_extended_to_other_batches_has_a_cache_of_its_own(
    tmp_path: Path, recorded: tuple[Path, Any], online: Any, train: Train, without_teacher: Path
) -> None:
    """Which serves a run of these batches from the start, too."""
    runs, more = tmp_path / "runs", ["--epochs=4", "--batch-size=20"]
    cached = [*more, f"--teacher-cache={tmp_path / 'c'}", EXACT]
    _, longer = extended(runs, "online", online, train, *more)
    for name, there in (("recording", 0), ("replaying", 6)):
        outcome, run = extended(runs, name, recorded[1], train, *cached)
        assert outcome.code == 0 and f"{there} of 12 steps are there" in outcome.err
        run.assert_same(longer)
    _, whole = train("whole", *cached)
    outcome, again = train("again", *cached, recipe=without_teacher)
    assert outcome.code == 0 and "12 of 12 steps are there" in outcome.err
    again.assert_same(whole)


def test_a_folder_that_is_no_cache(tmp_path: Path, train: Train) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    outcome, _ = train("photos", f"--teacher-cache={tmp_path / 'photos'}")
    assert outcome.code == 2 and "is no teacher cache (it has no manifest.json)" in outcome.err
    outcome, _ = train("file", f"--teacher-cache={tmp_path / 'photos' / 'cat.jpg'}")
    assert outcome.code == 2 and "cat.jpg" in outcome.err


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}', "\0"])
def test_a_damaged_manifest_is_told(cache: Path, train: Train, text: str) -> None:
    (cache / "manifest.json").write_text(text)
    outcome, _ = train("run", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 2 and "manifest.json" in outcome.err


def test_settings_without_effect(train: Train) -> None:
    outcome, _ = train("run", "--set=cache.top_logits=2")
    assert outcome.code == 2 and "no effect without --teacher-cache" in outcome.err


def test_too_many_logits(tmp_path: Path, train: Train) -> None:
    outcome, _ = train("run", f"--teacher-cache={tmp_path / 'c'}", "--set=cache.top_logits=10")
    assert outcome.code == 2 and "cache.top_logits 10 of 10 classes" in outcome.err
    assert not (tmp_path / "c").exists()


def test_a_full_disk_stops_the_recording_alone(
    tmp_path: Path, train: Train, online: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_STEPS", 2)
    monkeypatch.setattr(recorder, "RESERVE", 1 << 60)
    outcome, run = train("full", f"--teacher-cache={tmp_path / 'c'}", EXACT)
    assert outcome.code == 0 and outcome.err.count("the training goes on") == 1
    run.assert_same(online)
    assert not shard_files(tmp_path / "c")


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(
    cache: Path, train: Train, online: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, it is read; with a hole, it is refused before anything is trained."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("srd.training.run_cache.tempfile.NamedTemporaryFile", refused)
    outcome, run = train("whole", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0
    run.assert_same(online)
    outcome, _ = train("measured", f"--teacher-cache={cache}", EXACT, "--set=teacher.evaluate=true")
    assert outcome.code == 0
    shutil.rmtree(cache / "epoch_0001")
    outcome, _ = train("hole", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 2 and "lacks steps of this run, and cannot be written" in outcome.err


@pytest.mark.slow
def test_what_another_records_is_left_to_it(cache: Path, train: Train, online: Any) -> None:
    """A lock belongs to a process: the other recorder is one."""
    folder = cache / "epoch_0000"
    (folder / "steps_000000_000006_rows_0of1.safetensors").unlink()
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, pathlib, srd.run.lock as l; t = l.Turn(pathlib.Path(sys.argv[1]));"
         "print(t.taken, flush=True); sys.stdin.read()", folder / ".turn_00000_rows_0of1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
        assert not Turn(folder / ".turn_00000_rows_0of1").taken
        outcome, run = train("second", f"--teacher-cache={cache}", EXACT)
        assert outcome.code == 0
        run.assert_same(online)
        assert shard_files(cache) == ["epoch_0001/steps_000000_000006_rows_0of1.safetensors"]
    finally:
        holder.kill()
        holder.wait()
    assert Turn(folder / ".turn_00000_rows_0of1").taken


def killed(recipe: Path, output: Path, at: int, *more: object) -> None:
    """A run in a process of its own, with shards of two steps, killed in a step."""
    asked = arguments(recipe, output, "run", "--set=train.save_every_steps=1", *more)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(at), *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


def assert_goes_on(
    cache: Path, train: Train, recipe: Path, output: Path, at: int, online: Any
) -> None:
    """A killed recording goes on in the same bits; the next run finds all shards whole."""
    killed(recipe, output, at, f"--teacher-cache={cache}", EXACT)
    outcome, run = train("run", f"--teacher-cache={cache}", EXACT, "--set=train.save_every_steps=1")
    assert outcome.code == 0, outcome.err
    assert run.rows() == online.rows()
    assert (run.path / "student.safetensors").read_bytes() == (
        online.path / "student.safetensors"
    ).read_bytes()
    outcome, second = train("second", f"--teacher-cache={cache}", EXACT)
    assert outcome.code == 0 and "damaged" not in outcome.err
    second.assert_same(online)
    outcome, _third = train("third", f"--teacher-cache={cache}", EXACT)
    assert "12 of 12 steps are there" in outcome.err
    assert not list(cache.rglob("*.part")) and not list(cache.rglob("*.damaged"))


@pytest.mark.slow
def test_killed_while_recording(
    tmp_path: Path, train: Train, recipe: Path, online: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_STEPS", 2)
    assert_goes_on(tmp_path / "c", train, recipe, tmp_path / "runs", 9, online)
