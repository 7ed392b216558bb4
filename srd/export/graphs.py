"""A classifier as a graph that runs without its Python code: `torch.export` and ONNX.

Both take any batch size, both carry the description of the classifier, and both are read back and
compared with the network that they came from before anyone gets them.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srd.errors import RunFailed
from srd.export.classifier import Classifier
from srd.export.description import OWN_SECTION, Description
from srd.export.layout import CONFIG
from srd.export.onnx_network import OnnxNetwork

TOLERANCE = 1e-4  # between a graph's logits and the network's, relative to the largest above 1
TRACED_BATCH, TRIED_BATCHES = 2, (1, 3)
IMAGES, LOGITS, BATCH = "images", "logits", "batch"
LARGEST_BATCH = 2**31 - 1  # torch 2.6 wants a bound


@dataclass(frozen=True)
class Original:
    """A classifier that is handed on, and its graph, traced once for all who ask for it."""

    classifier: Classifier

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """See `trace`."""
        return trace(self.classifier)


def trace(classifier: Classifier) -> torch.export.ExportedProgram:
    """The network as a graph over images (batch, 3, S, S), for any batch.

    Raises:
        RunFailed: it has parts that cannot be traced (a student's can).
    """
    example = _images(classifier.description, TRACED_BATCH)
    shapes = ({0: torch.export.Dim(BATCH, max=LARGEST_BATCH)},)
    try:
        return torch.export.export(
            classifier.model, (example,), dynamic_shapes=shapes, strict=False
        )
    except Exception as error:  # the tracer's exceptions have no common class
        name, reason = classifier.description.architecture, " ".join(str(error).split())[:160]
        raise RunFailed(f"torch.export cannot trace {name} ({reason})") from error


def write_torch(original: Original, path: Path) -> str:
    """Write a `.pt2` file with `config.json` in it, and compare it; see `compare`."""
    config = json.dumps(original.classifier.description.to_config())
    torch.export.save(original.program, path, extra_files={CONFIG: config})
    network = torch.export.load(path).module()
    return compare(original.classifier, network, path.name, reader="PyTorch")


def write_onnx(original: Original, path: Path) -> str:
    """Write an ONNX file with the description in its metadata, and compare it; see `compare`."""
    import onnx

    program = original.program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations
            model = _to_onnx(program, original.classifier)
    except Exception as error:  # the exporters' exceptions have no common class
        reason = " ".join(str(error).split())[:160]
        raise RunFailed(f"torch {torch.__version__} cannot write {path.name} ({reason})") from error
    onnx.helper.set_model_props(model, to_metadata(original.classifier.description))
    path.write_bytes(model.SerializeToString())
    return compare(original.classifier, OnnxNetwork(path), path.name, reader="ONNX Runtime")


def _to_onnx(program: torch.export.ExportedProgram, classifier: Classifier) -> Any:
    """The graph as an `onnx.ModelProto`, by torch's default exporter of either time."""
    names: dict[str, Any] = {"input_names": [IMAGES], "output_names": [LOGITS]}
    if torch.__version__ >= "2.9":  # a TorchVersion: 2.15 is newer
        from onnxscript import optimizer

        shapes = ({0: BATCH},)
        exported: Any = torch.onnx.export(
            program, (), dynamo=True, dynamic_shapes=shapes, verbose=False, optimize=False, **names
        )
        # its own second round takes as long as the first, and finds two identities in a transformer
        optimizer.optimize(exported.model, num_iterations=1)
        return exported.model_proto
    import onnx

    # The new exporter of these versions does not work with today's onnxscript.
    file: Any = io.BytesIO()
    axes = {IMAGES: {0: BATCH}, LOGITS: {0: BATCH}}
    example = _images(classifier.description, TRACED_BATCH)
    torch.onnx.export(classifier.model, (example,), file, dynamo=False, dynamic_axes=axes, **names)
    return onnx.load_model_from_string(file.getvalue())


def compare(classifier: Classifier, other: nn.Module, name: str, *, reader: str) -> str:
    """What to say of a file: by how much its logits differ on batches of one and three.

    Args:
        other: the network in the file `name`, read back by `reader`.

    Raises:
        RunFailed: it is above 1e-4 (of the largest logit, where that is above 1), or not a number.
    """
    largest = 0.0
    for size in TRIED_BATCHES:
        images = _images(classifier.description, size)
        with torch.inference_mode():
            expected, actual = classifier.model(images), other(images)
        difference = (expected - actual).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise RunFailed(
                f"{name} does not compute what the network computes: on a batch of {size} the "
                f"logits differ by {difference:.1e}"
            )
        largest = max(largest, difference)
    return (
        f"{name}: read back by {reader}, its logits differ from the network's by at most "
        f"{largest:.1e} (batches of 1 and 3)"
    )


def _images(description: Description, batch: int) -> Tensor:
    images = description.preprocessing
    shape = (batch, images.channels, images.image_size, images.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))


def to_metadata(description: Description) -> dict[str, str]:
    """A description as ONNX metadata: JSON values by name."""
    images = description.preprocessing
    values = {
        "architecture": description.architecture,
        "image_size": images.image_size,
        "mean": list(images.mean),
        "std": list(images.std),
        "crop": images.crop,
        "interpolation": images.interpolation,
        "labels": description.labels,
        OWN_SECTION: description.to_config(),
    }
    return {name: json.dumps(value) for name, value in values.items()}
