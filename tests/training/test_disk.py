"""Disks that fail under a run: a clear word, the earlier checkpoints untouched, and then it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srd.files.checkpoint import is_whole

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 24 MB large; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def command(recipe: Path, output: Path, *more: str) -> list[str]:
    every_step = "--set=train.save_every_steps=1"
    return [
        "--train_student",
        f"--config={recipe}",
        f"--output={output}",
        "--name=run",
        every_step,
        *more,
    ]


def fill(disk: Path) -> None:
    """Write until nothing more goes."""
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()


def check_untouched(run: Any, updates: int) -> None:
    """Every checkpoint is whole, the last one not older than `updates`; no half file lies there."""
    files = sorted(run.checkpoints.iterdir())
    assert files and all(file.suffix == ".pth" and is_whole(file) for file in files), files
    assert run.state()["position"]["updates"] >= updates


def test_a_disk_that_runs_full(
    small_disk: Path, recipe: Path, deit: Any, open_run: Any, strike: Any, tmp_path: Path
) -> None:
    strike(lambda: fill(small_disk), 4)
    full = deit(*command(recipe, small_disk))
    assert full.code == 1 and "No space left on device" in full.err, full.err
    assert "Traceback" not in full.err and full.err.count("failed:") == 1
    run = open_run(small_disk / "run")
    check_untouched(run, 3)  # the fourth is written in the background while the disk fills
    (small_disk / "filler").unlink()
    assert deit(*command(recipe, small_disk)).code == 0
    assert deit(*command(recipe, tmp_path / "undisturbed")).code == 0
    run.assert_same(open_run(tmp_path / "undisturbed" / "run"))


def test_a_disk_that_is_read_only(
    small_disk: Path, recipe: Path, deit: Any, open_run: Any, strike: Any
) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    strike(lambda: os.kill(os.getpid(), signal.SIGTERM), 4)
    assert deit(*command(recipe, small_disk)).code == 143
    remount("ro")
    for resume in ("auto", "none"):
        refused = deit(*command(recipe, small_disk), f"--resume={resume}")
        assert refused.code == 2 and "--output" in refused.err and "Traceback" not in refused.err
    check_untouched(open_run(small_disk / "run"), 5)
    remount("rw")
    assert deit(*command(recipe, small_disk)).code == 0


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.slow
def test_a_data_file_that_vanishes(
    tmp_path: Path,
    recipe: Path,
    deit: Any,
    open_run: Any,
    strike: Any,
    make_jpegs: Any,
    workers: int,
) -> None:
    names = [str(number) for number in range(10)]
    counts = {f"{split}/{name}": 6 for split in ("train", "val") for name in names}
    data = make_jpegs(tmp_path / "images", counts, size=(20, 20))
    train = [f"--data-path={data}", "--dataset=imagefolder", f"--workers={workers}",
             "--set=data.select_fraction=null"]  # fmt: skip
    aside = tmp_path / "aside"
    strike(lambda: shutil.move(data / "train", aside), 4)
    failed = deit(*command(recipe, tmp_path, *train))
    assert failed.code == 2 and "Traceback" not in failed.err
    assert f"cannot read {data / 'train'}" in failed.err and "No such file" in failed.err
    run = open_run(tmp_path / "run")
    stopped_at = run.state()["position"]["updates"]
    assert 5 <= stopped_at < 12  # what was read ahead may still be trained on
    check_untouched(run, stopped_at)
    shutil.move(aside, data / "train")
    assert deit(*command(recipe, tmp_path, *train)).code == 0
    assert deit(*command(recipe, tmp_path / "undisturbed", *train)).code == 0
    run.assert_same(open_run(tmp_path / "undisturbed" / "run"))
