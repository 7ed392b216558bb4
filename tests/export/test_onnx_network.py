"""ONNX files of strangers: what they may take, and what is said when they want more."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.classifier import Classifier
from srd.export.description import Description
from srd.export.onnx_network import OnnxNetwork, open_onnx
from srd.export.predict import Picture, predict
from srd.files.limits import LIMITS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT, INT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def constant(name: str, value: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))


def written(path: Path, nodes: list[Any], **metadata: str) -> Path:
    """A graph of images (B, 3, S, S) to logits (B, 3)."""
    images = helper.make_tensor_value_info("images", FLOAT, ["batch", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [images], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


MEANS = helper.make_node("ReduceMean", ["images"], ["logits"], axes=[2, 3], keepdims=0)


def huge(shape: list[int]) -> list[Any]:
    """A constant of any size, which an optimiser would make when the file is opened."""
    return [
        constant("shape", np.array(shape, np.int64)),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["means", "sum"], ["logits"]),
    ]


def endless() -> list[Any]:
    """A loop that goes on for 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info("i", INT, []), helper.make_tensor_value_info("go", BOOL, []),
         helper.make_tensor_value_info("x", FLOAT, None)],
        [helper.make_tensor_value_info("on", BOOL, []), helper.make_tensor_value_info("y", FLOAT, None)],
    )  # fmt: skip
    mean = helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0)
    loop = helper.make_node("Loop", ["rounds", "true", "means"], ["logits"], body=body)
    return [mean, constant("rounds", np.int64(2**62)), constant("true", np.bool_(True)), loop]


def test_logits_and_metadata_come_through(tmp_path: Path) -> None:
    network = OnnxNetwork(written(tmp_path / "a.onnx", [MEANS], hello="wörld"))
    assert network.metadata == {"hello": "wörld"}
    for batch in (1, 5):
        images = torch.randn(batch, 3, 4, 4)
        assert torch.allclose(network(images), images.mean((2, 3)))
    process = network.process
    del network
    assert process.poll() is not None


@pytest.mark.parametrize("kind, told", [
    ("endless", "more than 3 seconds: stopped"), ("40 GB", "damaged or not"),
    ("other shape", "instead of logits"),
])  # fmt: skip
def test_a_graph_that_wants_too_much(tmp_path: Path, kind: str, told: str) -> None:
    nodes = {
        "endless": endless(),
        "40 GB": huge([100_000, 100_000]),
        "other shape": [helper.make_node("Identity", ["images"], ["logits"])],
    }[kind]
    path = written(tmp_path / "a.onnx", nodes)
    network = OnnxNetwork(path, limits=replace(LIMITS, onnx_picture_seconds=3.0))
    with pytest.raises(UserError, match=told) as caught:
        network(torch.zeros(1, 3, 4, 4))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError):  # and again: it has ended
        network(torch.zeros(1, 3, 4, 4))


def test_files_that_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(UserError, match="no ONNX file"):
        OnnxNetwork(tmp_path / "pipe.onnx")
    path = written(tmp_path / "a.onnx", [MEANS], srd="{}")
    with pytest.raises(UserError, match="more than 10 bytes"):
        OnnxNetwork(path, limits=replace(LIMITS, onnx_bytes=10))
    with pytest.raises(UserError, match="does not describe a classifier"):
        open_onnx(path)


def test_data_in_another_file_is_not_read(tmp_path: Path) -> None:
    """An ONNX file may name files of weights: whatever is there would be read."""
    (tmp_path / "secret").write_bytes(bytes(12))
    weights = numpy_helper.from_array(np.zeros(3, np.float32), "bias")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret")
    mean = helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0)
    path = written(
        tmp_path / "a.onnx", [mean, helper.make_node("Add", ["means", "bias"], ["logits"])]
    )
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer.append(weights)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="damaged or not"):
        OnnxNetwork(path)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "last", [("Concat", ["means", "means"], {"axis": 1}), ("Log", ["means"], {})]
)
def test_values_that_are_no_classes(tmp_path: Path, last: tuple[str, list[str], Any]) -> None:
    """Six for three classes; and some that are no numbers."""
    mean = helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0)
    kind, given, how = last
    path = written(tmp_path / "a.onnx", [mean, helper.make_node(kind, given, ["logits"], **how)])
    description = Description(
        architecture="resnet18", num_classes=3, preprocessing=Preprocessing(4)
    )
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    classifier = Classifier(OnnxNetwork(path), description, "a")
    with pytest.raises(UserError, match="values for 3 classes"):
        list(predict(classifier, [Picture(str(picture))], torch.device("cpu")))
