"""A student is the same everywhere: PyTorch, ONNX Runtime, torch.export, and a Python without us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deit.student import create_student
from srd.config.fields import Config
from srd.config.layers import Layer, build, read_yaml
from srd.data.inputs import eval_transform
from srd.files.checkpoint import load_weights
from tests.export.conftest import Command

ONLY_TIMM = """
import json, timm, torch
from PIL import Image
folder, pictures = sys.argv[1], sys.argv[2:]
sys.path.insert(0, folder)
import srd_deit

named = timm.create_model("local-dir:" + folder, pretrained=True).eval()
by_file = timm.create_model(
    "srd_deit_tiny", num_classes=10, img_size=32, checkpoint_path=folder + "/model.safetensors"
).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(named))
images = torch.stack([transform(Image.open(name).convert("RGB")) for name in pictures])
with torch.no_grad():
    print(json.dumps([model(images).softmax(1).tolist() for model in (named, by_file)]))
assert not {"srd", "deit", "resnet"} & set(sys.modules)
"""

ONLY_ONNX = """
import json, numpy as np, onnxruntime
from PIL import Image
file, pictures = sys.argv[1], sys.argv[2:]
session = onnxruntime.InferenceSession(file)
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
size, found = about["image_size"], []
for name in pictures:
    image = Image.open(name).convert("RGB")
    shorter = int(size / about["crop"])
    ratio = shorter / min(image.size)
    image = image.resize(
        [int(ratio * side) if side > min(image.size) else shorter for side in image.size],
        {"bilinear": 2, "bicubic": 3}[about["interpolation"]],
    )
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    found.append((np.asarray(image) / 255 - about["mean"]) / about["std"])
images = np.stack(found).transpose(0, 3, 1, 2).astype(np.float32)
logits = session.run(["logits"], {"images": images})[0]
powers = np.exp(logits - logits.max(1, keepdims=True))
print(json.dumps({"labels": about["labels"], "p": (powers / powers.sum(1, keepdims=True)).tolist()}))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def expected(deit_run: Path, pictures: list[Path]) -> torch.Tensor:
    """Probabilities (6, 10) from the training side's own parts."""
    config = build(Config, [Layer("run", read_yaml(deit_run / "config.yaml"))])
    student = create_student("tiny", 10, 32)
    student.load_state_dict(load_weights(deit_run / "student.safetensors"))
    transform = eval_transform(config.data, config.model.image_size)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
    with torch.no_grad():
        found = student.eval()(images).softmax(dim=1)
    assert (found.max(dim=0).values - found.min(dim=0).values).max() > 1e-3, "all the same: no test"
    return found


def close(found: Any, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=tolerance)


def test_a_python_with_timm_and_the_folder_alone(
    fresh_python: Callable[..., str],
    deit_folder: Path,
    pictures: list[Path],
    expected: torch.Tensor,
) -> None:
    for found in json.loads(fresh_python(ONLY_TIMM, deit_folder, *pictures)):
        close(found, expected)


def test_onnx_runtime_with_the_file_alone_and_no_torch(
    fresh_python: Callable[..., str],
    deit_folder: Path,
    pictures: list[Path],
    expected: torch.Tensor,
) -> None:
    found = json.loads(fresh_python(ONLY_ONNX, deit_folder / "model.onnx", *pictures))
    assert found["labels"] == list("0123456789")
    close(found["p"], expected, 1e-4)


def test_the_torch_graph_takes_any_batch(deit_folder: Path, deit_run: Path) -> None:
    student = create_student("tiny", 10, 32).eval()
    student.load_state_dict(load_weights(deit_run / "student.safetensors"))
    extra = {"config.json": ""}
    graph = torch.export.load(deit_folder / "model.pt2", extra_files=extra).module()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(graph(images), student(images), rtol=0, atol=1e-5)
    assert json.loads(extra["config.json"])["num_classes"] == 10


@pytest.mark.parametrize(
    "place",
    ["exported", "exported/model.onnx", "exported/model.safetensors", "student",
     "student/student.safetensors", "student/checkpoints/best.pth"],
)  # fmt: skip
def test_predict_says_the_same_for_each_kind_of_model(
    predicting: Command,
    deit_run: Path,
    deit_folder: Path,
    pictures: list[Path],
    expected: torch.Tensor,
    place: str,
) -> None:
    model = deit_run.parent / place
    done = predicting(model, *pictures, "--json", "--top=10", "--device=cpu", "--batch-size=4")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    for row, probabilities in zip(rows, expected, strict=True):
        values = [guess["probability"] for guess in row["top"]]
        assert values == sorted(values, reverse=True)
        assert all(guess["label"] == str(guess["class"]) for guess in row["top"])
        by_class = {guess["class"]: guess["probability"] for guess in row["top"]}
        close([by_class[number] for number in range(10)], probabilities, 1e-4)
