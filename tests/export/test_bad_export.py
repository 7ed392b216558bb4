"""What cannot be exported, or published, is told in a line; nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deit.student import create_student
from tests.export.conftest import Command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "no checkpoint at nowhere"),
        (["README.md"], "README.md is damaged or not a checkpoint"),
        (["docs"], "no student in docs"),
        (["RUN", "--format", "onxx"], "--format onxx: one or more of"),
        (["RUN", "--format"], "--format"),
        (["RUN", "--outptu", "x"], "did you mean '--output'"),
        (["RUN", "--output", "FOLDER"], "exists"),
        (["RUN", "--output", "/proc/nowhere/x"], "cannot write"),
        (["model.onnx"], "export already"),
        (["RUN", "--push-to-hub", "somebody"], "expected USER/NAME"),
        (["RUN", "--push-to-hub", "some body/x"], "expected USER/NAME"),
    ],
)
def test_wrong_input(
    exporting: Command, deit_run: Path, deit_folder: Path, arguments: list[str], told: str
) -> None:
    places = {"RUN": str(deit_run), "FOLDER": str(deit_folder)}
    done = exporting(*(places.get(argument, argument) for argument in arguments))
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err


def shapes(**changes: Any) -> dict[str, torch.Tensor]:
    """A student's weights with tensors changed, or left out (None)."""
    weights = {**create_student("tiny", 10, 32).state_dict(), **changes}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head.weight": None}, "head.weight is not there"),
        ({"pos_embed": torch.zeros(1, 8, 192)}, "8 positions are not two and a square"),
        ({"pos_embed": torch.zeros(1, 2, 192)}, "2 positions"),
        ({"conv_embed.proj.weight": torch.zeros(100, 64, 8, 8)}, "100 wide"),
        ({"blocks.3.norm1.bias": None}, "1 missing: blocks.3.norm1.bias"),
        ({"blocks.3.norm1.bias": torch.zeros(3)}, "(3,) instead of (192,)"),
        ({"blocks.12.norm1.bias": torch.zeros(192)}, "1 unexpected: blocks.12.norm1.bias"),
    ],
)
def test_weights_that_are_almost_a_student(
    exporting: Command, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    torch.save({"model": shapes(**changes)}, tmp_path / "x.pth")
    done = exporting(tmp_path / "x.pth", "--output", tmp_path / "out", "--format", "timm")
    assert done.code == 2 and told in done.err and not (tmp_path / "out").exists(), done.err


def test_weights_of_something_else(exporting: Command, tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3, 3)}, tmp_path / "x.pth")
    done = exporting(tmp_path / "x.pth", "--output", tmp_path / "out")
    assert done.code == 2 and "no student of this project" in done.err


@pytest.mark.slow
def test_weights_that_are_not_numbers(exporting: Command, tmp_path: Path) -> None:
    torch.save(
        {"model": shapes(**{"norm.bias": torch.full((192,), torch.nan)})}, tmp_path / "x.pth"
    )
    done = exporting(tmp_path / "x.pth", "--output", tmp_path / "out", "--format", "torch")
    assert done.code == 1 and "nan" in done.err
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_onnx_without_its_packages(
    exporting: Command, deit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "onnxscript"
    monkeypatch.setattr("srd.installed.find_spec", lambda name: None if name == missing else name)
    done = exporting(deit_run, "--output", tmp_path / "out")
    assert done.code == 2 and "need onnxscript: pip install" in done.err and "[export]" in done.err
    assert exporting(deit_run, "--output", tmp_path / "out", "--format", "timm").code == 0


def test_a_disk_that_fills_up_leaves_nothing(
    exporting: Command, deit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srd.export.folder.write_text", full)
    done = exporting(deit_run, "--output", tmp_path / "out", "--format", "safetensors")
    assert done.code == 1 and "No space left" in done.err and not list(tmp_path.iterdir())


def test_publishing_needs_a_token(
    exporting: Command, deit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = exporting(deit_run, "--output", tmp_path / "out", "--push-to-hub", "some/body")
    assert done.code == 2 and "HF_TOKEN" in done.err and not (tmp_path / "out").exists()


def test_publishing_without_a_network_keeps_the_folder(
    exporting: Command, deit_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_no_such_token")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    folder = tmp_path / "out"
    done = exporting(deit_run, "--output", folder, "--format=timm", "--push-to-hub=some/body")
    assert done.code == 2 and "did not answer" in done.err and "push it again later" in done.err
    assert (folder / "model.safetensors").is_file()
