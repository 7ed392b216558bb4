"""The model card of an exported folder: Hugging Face's front matter, and words for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from srd.config.layers import dump_yaml
from srd.data.labels import is_imagenet
from srd.export.classifier import Classifier
from srd.export.description import Description
from srd.printable import as_code, as_markdown

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
    classifier: Classifier, *, licence: str, usage: Iterable[str], checks: Sequence[str]
) -> str:
    """README.md as Markdown.

    Args:
        licence: of the weights, one of the Hub's identifiers; `unknown` where nobody said.
        usage: how to use each file, in Markdown.
        checks: what was compared, a line each.
    """
    description = classifier.description
    sections = [
        _front_matter(description, licence),
        f"# {as_markdown(classifier.name)}\n",
        "".join(
            f"- **{as_markdown(key)}:** {as_markdown(value)}\n"
            for key, value in _facts(description, licence).items()
        ),
        "Accuracy is what the run that trained these weights measured itself.\n"
        if description.num_classes
        else "A backbone without a head: it gives features, which it learned from its teacher's.\n",
        _section("Use", [f"{text}\n" for text in usage if text]),
        _section("Files compared with the network", ["".join(f"- {line}\n" for line in checks)]),
        _settings(description),
        "## Citation\n\n" + CITATION,
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(description: Description, licence: str) -> str:
    task = "image-classification" if description.num_classes else "image-feature-extraction"
    values: dict[str, object] = {
        "library_name": "timm",
        "pipeline_tag": task,
        "license": licence,
        "tags": [task, "timm", "knowledge-distillation"],
        **({"metrics": ["accuracy"]} if description.num_classes else {}),
    }
    if is_imagenet(description.label_names):
        values["datasets"] = ["imagenet-1k"]
    return f"---\n{dump_yaml(values)}---\n"


def _facts(description: Description, licence: str) -> dict[str, str]:
    stated = licence if licence != "unknown" else "of the weights: not stated"
    return {
        "Model": description.architecture,
        **description.about,
        "Classes": str(description.num_classes or "none: features"),
        "Images": str(description.preprocessing),
        "Licence": stated,
    }


def _section(title: str, parts: Sequence[str]) -> str:
    """A title and what follows; "" where nothing does."""
    text = "\n".join(parts)
    return f"## {title}\n\n{text}" if text else ""


def _settings(description: Description) -> str:
    if not description.settings:
        return ""
    return f"## Configuration\n\n{as_code(dump_yaml(description.settings), 'yaml')}"
