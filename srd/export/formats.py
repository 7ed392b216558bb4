"""What a student can be handed on as: `FORMATS`, a table with an object for each.

The table costs nothing to read: what writes a file is imported when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srd.errors import UserError, nearest
from srd.export.layout import CONFIG, ONNX, TORCH, WEIGHTS
from srd.installed import need_extra

if TYPE_CHECKING:
    from srd.export.classifier import Classifier
    from srd.export.graphs import Original


@dataclass(frozen=True, kw_only=True)
class Format:
    """One thing that a student can be handed on as.

    Args:
        file: its name in the exported folder.
        write: the file at that path; returns what a comparison with the network said, or None.
            `Original` is the classifier and its graph. Errors: RunFailed.
        usage: how to use the file, in Markdown, for the model card; "" where there is nothing to say.
        packages: what `write` imports beyond the project's own requirements.
        extra: of the project, which installs them; None: they are installed by their names.
        includes: other formats that come along.
    """

    name: str
    file: str
    write: Callable[[Original, Path], str | None]
    usage: Callable[[Classifier], str] = lambda classifier: ""
    packages: tuple[str, ...] = ()
    extra: str | None = None
    includes: tuple[str, ...] = ()


def choose_formats(names: Iterable[str]) -> list[Format]:
    """The formats of these names and what they include, in the order of the table.

    Raises:
        UserError: an unknown name (with the nearest), or a package that is not installed.
    """
    chosen: set[str] = set()
    for name in names:
        if name not in FORMATS:
            hint = nearest(name, FORMATS)
            raise UserError(f"--format {name}: one or more of {', '.join(FORMATS)}{hint}")
        chosen |= {name, *FORMATS[name].includes}
    formats = [format for name, format in FORMATS.items() if name in chosen]
    for format in formats:
        need_extra(format.extra, *format.packages, what=f"{format.file} files")
    return formats


def _write_weights(original: Original, path: Path) -> None:
    from srd.export.for_timm import write_weights

    write_weights(original.classifier, path)


def _write_config(original: Original, path: Path) -> None:
    from srd.export.for_timm import write_config

    write_config(original.classifier, path)


def _timm_usage(classifier: Classifier) -> str:
    from srd.export.for_timm import usage

    return usage(classifier)


def _write_onnx(original: Original, path: Path) -> str:
    from srd.export.graphs import write_onnx

    return write_onnx(original, path)


def _write_torch(original: Original, path: Path) -> str:
    from srd.export.graphs import write_torch

    return write_torch(original, path)


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(name="safetensors", file=WEIGHTS, write=_write_weights),
        Format(
            name="timm",
            file=CONFIG,
            write=_write_config,
            usage=_timm_usage,
            includes=("safetensors",),
        ),
        Format(
            name="onnx",
            file=ONNX,
            write=_write_onnx,
            usage=lambda classifier: (
                f"`{ONNX}` maps `images` (batch, channels, S, S) to `logits`; its metadata says how "
                "images are prepared and what the classes are called."
            ),
            packages=("onnx", "onnxscript", "onnxruntime"),
            extra="export",
        ),
        Format(
            name="torch",
            file=TORCH,
            write=_write_torch,
            usage=lambda classifier: (
                f'`torch.export.load("{TORCH}").module()` is the network, without timm.'
            ),
        ),
    )
}
