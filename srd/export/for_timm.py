"""What timm reads: the weights, `config.json`, and the source of an architecture that it lacks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import timm

from srd.export.classifier import Classifier
from srd.export.description import OWN_SECTION
from srd.files.checkpoint import save_weights, write_text, write_whole
from srd.printable import as_json

CODE_LICENCE = "MIT"


def write_weights(classifier: Classifier, path: Path) -> None:
    """The network's weights, with its description in the file's metadata."""
    about = {"format": "pt", OWN_SECTION: json.dumps(classifier.description.to_config())}
    save_weights(path, classifier.model.state_dict(), about)


def write_config(classifier: Classifier, path: Path) -> None:
    """`config.json`, and next to it a copy of the architecture's source where timm lacks it."""
    write_text(path, as_json(classifier.description.to_config()) + "\n")
    if (code := code_of(classifier.description.architecture)) is not None:
        write_whole(path.with_name(code.name), lambda file: file.write(code.read_bytes()))


def code_of(architecture: str) -> Path | None:
    """The file that registers an architecture with timm; None for timm's own."""
    build = timm.model_entrypoint(architecture)
    return None if build.__module__.startswith("timm.") else Path(inspect.getfile(build))


def usage(classifier: Classifier) -> str:
    """A few lines of Python that classify a picture, in Markdown."""
    code, mode = (
        code_of(classifier.description.architecture),
        classifier.description.preprocessing.mode,
    )
    lines = [
        "import timm",
        "from PIL import Image",
        *([f"import {code.stem}  # {code.name} of this folder, on Python's path"] if code else []),
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # timm 1.0.16',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f'logits = model(transform(Image.open("IMAGE").convert("{mode}"))[None])',
    ]
    text = "```python\n" + "\n".join(lines) + "\n```"
    if code is not None:
        text += (
            f"\n\n`{code.name}` is under the {CODE_LICENCE} licence and needs torch and timm only."
        )
    return text
