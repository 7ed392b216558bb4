"""The released files: one table in the code and in ckpts/README.md, and a script that fetches."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchvision.models import ResNet34_Weights

from srd.errors import exit_code
from srd.files.released import RELEASED, Released, markdown
from tests.files.made import WEIGHTS, zipped
from tests.files.servers import serving

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "scripts/fetch_checkpoints.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_table() -> None:
    assert f"\n{markdown()}\n" in (ROOT / "ckpts/README.md").read_text()


def test_the_table_agrees_with_what_the_code_looks_for() -> None:
    from srd.models.teacher import PAPER_FILE

    files = {one.name: one for one in RELEASED}
    assert files["regnety_160"].file == PAPER_FILE
    assert files["regnety_160"].digits == "a5fe301d"
    assert files["resnet34"].source == ResNet34_Weights.IMAGENET1K_V1.url
    assert f"{ResNet34_Weights.IMAGENET1K_V1.meta['_file_size']:.1f} MiB" in files["resnet34"].size
    for size in ("tiny", "small"):
        assert files[f"deit_{size}"].file == f"deit_{size}/ckpt_epoch_299.pth"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/fetch_checkpoints.py", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_the_list() -> None:
    done = command("--list")
    assert done.returncode == 0 and done.stderr == ""
    for one in RELEASED:
        assert f"{one.name}: " in done.stdout and one.source in done.stdout


@pytest.mark.slow
def test_unknown_names_and_files_to_fetch_by_hand(tmp_path: Path) -> None:
    done = command("deit_tiny", "deit_smal")
    assert done.returncode == 2 and done.stdout == ""
    assert "'deit_smal' (did you mean 'deit_small'?)" in done.stderr
    done = command("deit_tiny", "--to", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "by hand" in done.stdout and "drive.google.com" in done.stdout
    assert str(tmp_path / "deit_tiny/ckpt_epoch_299.pth") in done.stdout


DATA = zipped(WEIGHTS)
DIGITS = hashlib.sha256(DATA).hexdigest()[:8]


def table(address: str) -> tuple[Released, ...]:
    rest = {"what": "", "licence": "", "use": "", "acc1": 0.0, "acc5": None, "reported_by": ""}
    return (
        Released("good", file=f"good-{DIGITS}.pth", source=f"{address}/good", **rest),
        Released("bad", file="bad-00000000.pth", source=f"{address}/good", **rest),
        Released("page", file="sub/page.pth", source=f"{address}/page", **rest),
        Released("cached", file="c.pth", source=f"{address}/good", in_torch_cache=True, **rest),
    )


def test_files_are_fetched_checked_and_put_in_their_places(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(script, "CKPTS", tmp_path / "ckpts")
    with serving({"/good": DATA, "/page": b"<!DOCTYPE html><html>Quota exceeded"}) as server:
        monkeypatch.setattr(script, "RELEASED", table(server.address))
        assert exit_code(lambda: script.run(["good", "cached"])) == 0
        assert exit_code(lambda: script.run(["good"])) == 0
        assert "is there already" in capsys.readouterr().out
        assert len(server.requests) == 2
        assert exit_code(lambda: script.run([])) == 1, "the others are done, then it is said"
        said = capsys.readouterr().err
    assert "bad: " in said and "page: " in said and "web page" in said
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [f"ckpts/good-{DIGITS}.pth", "torch/checkpoints/c.pth"]


def test_a_damaged_file_is_fetched_anew(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"good-{DIGITS}.pth"
    path.write_bytes(DATA[:-1])
    with serving({"/good": DATA}) as server:
        monkeypatch.setattr(script, "RELEASED", table(server.address))
        assert exit_code(lambda: script.run(["good", "--to", str(tmp_path)])) == 0
    assert path.read_bytes() == DATA
