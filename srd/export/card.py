"""The model card of an exported folder: Hugging Face's front matter, and words for people."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from srd.config.layers import dump_yaml
from srd.data.labels import is_imagenet
from srd.export.classifier import Classifier
from srd.export.description import Description
from srd.export.formats import CONFIG, ONNX, TORCH

CODE_LICENCE = "MIT"
CITATION = """\
```bibtex
@inproceedings{miles2024understanding,
  title     = {Understanding the Role of the Projector in Knowledge Distillation},
  author    = {Miles, Roy and Mikolajczyk, Krystian},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2024}
}
```
"""


def model_card(
    classifier: Classifier,
    licence: str,
    files: Collection[str],
    checks: Iterable[str],
    code: Path | None,
) -> str:
    """README.md as Markdown.

    Args:
        licence: of the weights, one of the Hub's identifiers; `unknown` where nobody said.
        files: the other files of the folder.
        checks: what was compared, a line each.
        code: the Python file among them, if any.
    """
    description = classifier.description
    sections = [
        _front_matter(description, licence),
        f"# {classifier.name}\n",
        "".join(f"- **{key}:** {value}\n" for key, value in _facts(description, licence).items()),
        "Accuracy is what the run that trained these weights measured itself.\n",
        _usage(files, code),
        _checks(checks),
        _settings(description),
        "## Citation\n\n" + CITATION,
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(description: Description, licence: str) -> str:
    values: dict[str, object] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": licence,
        "tags": ["image-classification", "timm", "knowledge-distillation"],
        "metrics": ["accuracy"],
    }
    if is_imagenet(description.label_names):
        values["datasets"] = ["imagenet-1k"]
    return f"---\n{dump_yaml(values)}---\n"


def _facts(description: Description, licence: str) -> dict[str, str]:
    stated = licence if licence != "unknown" else "of the weights: not stated"
    return {
        "Model": description.architecture,
        **description.about,
        "Classes": str(description.num_classes),
        "Images": str(description.preprocessing),
        "Licence": stated,
    }


def _usage(files: Collection[str], code: Path | None) -> str:
    parts = ["## Use\n"]
    if CONFIG in files:
        parts.append(_with_timm(code))
    if ONNX in files:
        parts.append(
            f"`{ONNX}` maps `images` (batch, 3, S, S) to `logits`; its metadata says how images "
            "are prepared and what the classes are called.\n"
        )
    if TORCH in files:
        parts.append(f'`torch.export.load("{TORCH}").module()` is the network, without timm.\n')
    return "\n".join(parts) if len(parts) > 1 else ""


def _with_timm(code: Path | None) -> str:
    lines = [
        "import timm",
        "from PIL import Image",
        *([f"import {code.stem}  # {code.name} of this folder, on Python's path"] if code else []),
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # timm 1.0.16',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        'logits = model(transform(Image.open("IMAGE").convert("RGB"))[None])',
    ]
    text = "```python\n" + "\n".join(lines) + "\n```\n"
    if code is not None:
        text += (
            f"\n`{code.name}` is under the {CODE_LICENCE} licence and needs torch and timm only.\n"
        )
    return text


def _checks(checks: Iterable[str]) -> str:
    lines = "".join(f"- {line}\n" for line in checks)
    return f"## Files compared with the network\n\n{lines}" if lines else ""


def _settings(description: Description) -> str:
    if not description.settings:
        return ""
    return f"## Configuration\n\n```yaml\n{dump_yaml(description.settings)}```\n"
