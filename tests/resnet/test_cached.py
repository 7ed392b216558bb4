"""torchdistill's teacher behind the cache: what its hooks see is replayed to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet34

from tests.resnet.recipes import Command


@pytest.fixture
def own_teacher(tmp_path: Path, teacher_file: Path, srd_yaml: str) -> tuple[str, Path]:
    """The recipe with a teacher's file that may be deleted."""
    copy = tmp_path / "own.pth"
    copy.write_bytes(teacher_file.read_bytes())
    return srd_yaml.replace(str(teacher_file), str(copy)), copy


@pytest.mark.slow
def test_recorded_replayed_and_online_are_the_same_run(
    tmp_path: Path,
    own_teacher: tuple[str, Path],
    command: Command,
    open_run: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, file = own_teacher
    exact = text.replace("run: {", "run: {cache_dtype: float32, ")
    cache = f"--teacher-cache={tmp_path / 'cache'}"
    assert command(text, name="online") == 0
    assert command(exact, cache, name="recorded") == 0
    assert "0 of 6 steps are there" in capsys.readouterr().err
    file.unlink()
    assert command(exact, cache, name="replayed") == 0
    assert "6 of 6 steps are there, the teacher is not needed" in capsys.readouterr().err
    online, recorded, replayed = (
        open_run(tmp_path / "runs" / name) for name in ("online", "recorded", "replayed")
    )
    recorded.assert_same(online)
    # without the teacher, nothing says how far the student agrees with it
    assert replayed.rows("step") == online.rows("step")
    students = [run.path / "student.safetensors" for run in (replayed, online)]
    assert students[0].read_bytes() == students[1].read_bytes()
    assert command(exact, cache, "--seed=1", name="other") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    assert command(exact.replace("size: 32", "size: 24"), cache, name="other") == 2
    assert "recorded otherwise" in capsys.readouterr().err
    for shard in (tmp_path / "cache" / "epoch_0001").iterdir():
        shard.unlink()
    assert command(exact, cache, name="other") == 2
    assert "lacks 3 steps (from epoch 1, step 0 on)" in capsys.readouterr().err
    torch.manual_seed(8)
    torch.save({"model": resnet34(num_classes=10).state_dict()}, file)
    assert command(exact, cache, name="other") == 2
    assert "teacher.sha256: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_run_replays_what_is_there_and_records_the_rest(
    tmp_path: Path,
    srd_yaml: str,
    command: Command,
    open_run: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact = srd_yaml.replace("run: {", "run: {cache_dtype: float32, ")
    longer, cache = exact.replace("num_epochs: 2", "num_epochs: 3"), tmp_path / "cache"
    for name, flags in (("online", []), ("cached", [f"--teacher-cache={cache}"])):
        assert command(exact, *flags, name=name) == 0
        assert command(longer, *flags, "--extend", name=name) == 0
    assert "6 of 9 steps are there" in capsys.readouterr().err
    cached, online = (open_run(tmp_path / "runs" / name) for name in ("cached", "online"))
    cached.assert_same(online)
    other = longer.replace("batch_size: 10", "batch_size: 15").replace("epochs: 3", "epochs: 4")
    assert command(other, f"--teacher-cache={cache}", "--extend", name="cached") == 2
    assert "batch_size: 10 -> 15" in capsys.readouterr().err


def test_a_run_in_stages_is_refused(
    tmp_path: Path, srd_yaml: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    head, _, rest = srd_yaml.partition("\ntrain:")
    stage, _, test = rest.partition("\ntest:")
    stages = "".join(
        f"\n  stage{n}:" + stage.replace("\n", "\n  ").replace("&val", f"&val{n}") for n in (1, 2)
    )
    text = f"{head}\ntrain:{stages}\ntest:{test}".replace("*val", "*val2")
    assert command(text, f"--teacher-cache={tmp_path / 'cache'}") == 2
    assert "each stage asks its teacher for other layers" in capsys.readouterr().err


def test_a_teacher_that_is_trained_cannot_be_kept(
    tmp_path: Path, srd_yaml: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    text = srd_yaml.replace("requires_grad: false", "requires_grad: true")
    assert command(text, f"--teacher-cache={tmp_path / 'cache'}") == 2
    assert "run.teacher_cache: this teacher is trained" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
