"""The table of formats: what it takes by name, and a format of somebody's own."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.classifier import Classifier
from srd.export.description import Description
from srd.export.folder import export
from srd.export.formats import FORMATS, Format, choose_formats
from srd.export.graphs import Original

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    model = timm.create_model("test_byobnet", num_classes=3).eval()
    return Classifier(model, Description("test_byobnet", 3, Preprocessing(32)), "mine")


def names(*chosen: str) -> list[str]:
    return [format.name for format in choose_formats(chosen)]


def test_formats_by_name_with_what_they_include() -> None:
    assert list(FORMATS) == ["safetensors", "timm", "onnx", "torch"]
    assert names(*FORMATS) == list(FORMATS)
    assert names("torch", "timm") == ["safetensors", "timm", "torch"]
    assert len({format.file for format in FORMATS.values()}) == len(FORMATS)
    with pytest.raises(UserError, match=r"--format onxx: one or more of .*mean 'onnx'"):
        names("timm", "onxx")


def test_what_a_format_needs_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier, tmp_path: Path
) -> None:
    missing = {"onnxscript", "onnxruntime"}
    monkeypatch.setattr("srd.installed.find_spec", lambda name: name not in missing or None)
    with pytest.raises(UserError, match=r"onnxscript, onnxruntime: pip install '.*\[export\]'"):
        export(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export(classifier, tmp_path / "out", formats=["timm"])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"README.md", "config.json", "model.safetensors"}


def test_a_signal_leaves_nothing_half_written(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier, tmp_path: Path
) -> None:
    def struck(*_: object, **__: object) -> str:
        signal.raise_signal(signal.SIGTERM)
        return ""

    monkeypatch.setattr("srd.export.folder.model_card", struck)
    with pytest.raises(KeyboardInterrupt):
        export(classifier, tmp_path / "out", formats=["timm"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_graph_is_traced_for_all(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier, tmp_path: Path
) -> None:
    traced = []
    trace = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: traced.append(1) or trace(*a, **k))
    told: list[str] = []
    export(classifier, tmp_path / "out", formats=["onnx", "torch"], report=told.append)
    assert len(traced) == 1
    assert [line.split(",")[0] for line in told] == [
        "model.onnx: read back by ONNX Runtime", "model.pt2: read back by PyTorch"
    ]  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {line}\n" in card for line in told)
    assert "maps `images`" in card and "torch.export.load" in card and "local-dir" not in card


def test_a_format_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier, tmp_path: Path
) -> None:
    def write(original: Original, path: Path) -> str:
        halves = {name: v.half() for name, v in original.classifier.model.state_dict().items()}
        torch.save(halves, path)
        return f"{path.name}: {len(halves)} tensors"

    mine = Format(
        name="half", file="model.half.pt", write=write, usage=lambda c: f"{c.name} in half"
    )
    monkeypatch.setitem(FORMATS, "half", mine)
    export(classifier, tmp_path / "out", formats=["half"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Use\n\nmine in half\n" in card and "- model.half.pt: " in card
    weights = torch.load(tmp_path / "out" / "model.half.pt")
    assert torch.equal(weights["head.fc.weight"], classifier.model.head.fc.weight.half())
    export(classifier, tmp_path / "out", formats=["half"], overwrite=True)
    monkeypatch.setitem(FORMATS, "half", replace(mine, packages=("no_such_package",)))
    with pytest.raises(UserError, match=r"half\.pt files need .*: pip install no_such_package$"):
        export(classifier, tmp_path / "out", formats=["half"], overwrite=True)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, srd.export.formats as f; assert f.FORMATS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
