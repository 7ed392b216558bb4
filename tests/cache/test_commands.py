"""`srd cache`: filled without a student, in parts; listed, verified, pruned."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srd.cache import shards
from srd.commands.cache import parse_part, run
from srd.errors import UserError, exit_code
from tests.cache.conftest import EXACT, Train

Srd = Callable[..., tuple[int, str]]


@pytest.fixture
def srd(capsys: pytest.CaptureFixture[str]) -> Srd:
    """`srd cache ...`, in this process: exit code, and all that it printed."""

    def command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = exit_code(lambda: run([str(argument) for argument in arguments]))
        return code, "".join(capsys.readouterr())

    return command


@pytest.fixture
def four_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of at most four steps: two an epoch."""
    monkeypatch.setattr(shards, "SHARD_STEPS", 4)


@pytest.mark.usefixtures("four_steps")
def test_parts_fill_a_cache_that_replays_the_online_run(
    tmp_path: Path, srd: Srd, train: Train, recipe: Path, without_teacher: Path, online: Any
) -> None:
    cache = tmp_path / "c"
    asked = [f"--config={recipe}", f"--teacher-cache={cache}", EXACT, "--device=cpu"]
    code, told = srd("fill", *asked, "--part=2/2")
    assert code == 0 and "4 steps are still missing" not in told and "steps are still" in told
    assert [path.name for path in sorted(cache.glob("epoch_*/*"))] == [
        "steps_000004_000006_rows_0of1.safetensors"
    ] * 2
    code, told = srd("list", cache)
    assert code == 0 and "epoch 1: 2 of 6 steps" in told and "test_byobnet, digits" in told
    code, told = srd("fill", *asked)
    assert code == 0 and "all there" in told
    code, told = srd("fill", *asked, "--lr=1", "--distillation=srd")
    assert code == 0 and "nothing to do" in told
    assert told.count("--lr: optim.lr has no effect on a teacher cache") == 1
    assert told.count("no effect") == 1, "the loss says whether tokens are kept"
    outcome, replayed = train("run", f"--teacher-cache={cache}", EXACT, recipe=without_teacher)
    assert outcome.code == 0
    replayed.assert_same(online)


def test_verify_computes_a_sample_again(
    cache: Path, srd: Srd, recipe: Path, teacher_file: Path
) -> None:
    code, told = srd("verify", cache)
    assert code == 0 and "2 shards, every row as it was written" in told
    asked = ["verify", cache, f"--config={recipe}", EXACT, "--device=cpu", "--sample=3"]
    code, told = srd(*asked)
    assert code == 0 and "3 steps computed again" in told and "the same bits" in told
    code, told = srd(*asked, "--seed=1")
    assert code == 2 and "seed: 0 -> 1" in told


def test_a_teacher_that_says_something_else(
    cache: Path, srd: Srd, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srd.models.teacher import FrozenTeacher

    forward = FrozenTeacher.forward

    def changed(self: Any, images: Any) -> Any:
        output = forward(self, images)
        return output._replace(features=output.features * 1.1)

    monkeypatch.setattr(FrozenTeacher, "forward", changed)
    code, told = srd("verify", cache, f"--config={recipe}", EXACT, "--device=cpu")
    assert code == 2 and re.search(r"largest difference is \S+, 9\.\d+ % of the largest", told)


def test_verify_names_what_is_damaged(cache: Path, srd: Srd) -> None:
    first, second = sorted(cache.rglob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 4
    first.write_bytes(data)
    os.truncate(second, 1000)
    code, told = srd("verify", cache)
    assert code == 2 and str(first) in told and f"{second} is cut short" in told


def test_prune(cache: Path, srd: Srd) -> None:
    folder = cache / "epoch_0000"
    for name in (".steps_000000_000006_rows_0of1.safetensors.x.part", "a.safetensors.damaged"):
        (folder / name).write_bytes(b"12")
    code, told = srd("prune", cache)
    assert code == 0 and "2 files removed, 4 bytes" in told
    assert len(list(folder.iterdir())) == 1
    code, _ = srd("prune", cache, "--epochs=1")
    assert code == 0 and not (cache / "epoch_0001").exists() and folder.exists()
    code, told = srd("size", cache)
    assert code == 0 and "1,076 bytes a view, 64.6 kB an epoch, 64.6 kB for 1 epoch(s)" in told


def test_list_finds_every_cache_in_a_folder(cache: Path, srd: Srd) -> None:
    shutil.copytree(cache, cache.parent / "other")
    code, told = srd("list", cache.parent)
    assert code == 0 and f"{cache}: " in told and f"{cache.parent / 'other'}: " in told
    assert told.count("epoch 0: whole") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["fil"], "fil"),
        (["fill"], "--teacher-cache DIR"),
        (["fill", "--part=0/2"], "--part 0/2: expected I/N"),
        (["fill", "--teacher-cach=x"], "--teacher-cache"),
        (["list", "nowhere"], "there is no teacher cache in nowhere"),
        (["verify", "nowhere"], "there is no teacher cache in nowhere"),
        (["size", "nowhere"], "there is no teacher cache in nowhere"),
        (["prune", "nowhere"], "there is no teacher cache in nowhere"),
        (["size", "."], "there is no teacher cache in ."),
        (["prune", "nowhere", "--epochs=-1"], "--epochs -1"),
        (["verify", "nowhere", "--sample=0"], "--sample 0"),
        (["verify", "nowhere", "--config=missing.yaml"], "missing.yaml: no such file"),
        (["verify", "nowhere", "--teacher-cache=x"], "DIR says which cache"),
    ],
    ids=" ".join,
)
def test_mistakes_are_named(
    srd: Srd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
    arguments: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = [f"--config={recipe}"] if arguments[:1] == ["fill"] else []
    code, told = srd(*arguments, *more)
    assert code == 2 and message in told and "Traceback" not in told


def test_parts() -> None:
    assert parse_part("3/3") == (2, 3) and parse_part(None) is None
    for wrong in ("3/2", "0/2", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError):
            parse_part(wrong)


def test_fill_without_a_teacher(tmp_path: Path, srd: Srd, without_teacher: Path) -> None:
    code, told = srd("fill", f"--config={without_teacher}", f"--teacher-cache={tmp_path / 'c'}")
    assert code == 2 and "gone.pth" in told and not (tmp_path / "c").exists()
    assert json.loads(without_teacher.read_text())


def test_prune_removes_what_a_cache_makes_and_nothing_through_a_link(
    cache: Path, srd: Srd, tmp_path: Path
) -> None:
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    shutil.copytree(cache, mine)
    shutil.move(mine / "epoch_0001", elsewhere)
    (elsewhere / ".notes.part").write_text("somebody's")
    (mine / "epoch_0001").symlink_to(elsewhere)
    (mine / "epoch_0000" / "notes.txt").write_text("somebody's")
    there = sorted(elsewhere.iterdir())
    code, told = srd("prune", mine, "--epochs=0")
    assert code == 0 and "epoch_0001 is no folder of this cache's" in told and "1 files" in told
    assert sorted(elsewhere.iterdir()) == there
    assert os.listdir(mine / "epoch_0000") == ["notes.txt"]


IMMENSE, DEEP = 2**31 - 1, {"a": 1}
for _ in range(150):
    DEEP = {"a": DEEP}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"steps": IMMENSE}, "an epoch of"), ({"batch_size": IMMENSE}, "an epoch of"),
     ({"steps": IMMENSE, "batch_size": 1}, "steps"), ({"fields": {"logits": []}}, "no row of an image"),
     ({"fields": {"f": [1] * 100}}, "no row of an image"),
     ({"exact": "float16"}, "'float32' or 'float64'"),
     ({"fields": {str(n): [1] for n in range(2_000)}}, "1,000 fields"), (DEEP, "nested too deeply")],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_manifest_of_sizes_that_no_epoch_has(
    cache: Path, srd: Srd, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["recipe" if changed is DEEP else "shapes"] |= changed
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for command in ("list", "size", "verify"):
        code, said = srd(command, tmp_path)
        assert code == 2 and told in said and said.count("\n") == 1, said
