"""The manifest: what a cache's rows depend on. A run that differs in any of it cannot use the cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass

from srd.cache.codec import LOGITS
from srd.config.fields import Cache
from srd.config.layers import Layer, build, differences, to_mapping
from srd.errors import RunFailed, UserError
from srd.files.checkpoint import write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small
from srd.files.reading.pickles import check_tree
from srd.strict import STRICT, Count

NAME = "manifest.json"
FORMAT = 1
# What draws the views, and computes the outputs: distribution, and how much of its version counts.
PIXELS = "released"  # where a recipe names no other path
PACKAGES = {"torch": 2, "torchvision": 2, "timm": 3, "pillow": 2}


@dataclass(config=STRICT)
class Recorded:
    """The teacher that a cache recorded."""

    name: str
    sha256: str  # of its file, or of its weights where it came from the Hub
    knows_classes: bool  # else its logits are not kept


@dataclass(config=STRICT)
class Shapes:
    """The rows of a cache."""

    fields: dict[str, tuple[Count, ...]]
    dtype: str
    top_logits: Count | None
    exact: Literal["float32", "float64"]  # the type of exact values
    batch_size: Count
    steps: Count  # of an epoch


@dataclass(config=STRICT)
class Manifest:
    """Of a cache.

    Args:
        recipe: everything that decides which images the teacher sees.
        versions: of the packages that take part.
    """

    format: int
    teacher: Recorded
    shapes: Shapes
    recipe: dict[str, Any]
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        """As it is written."""
        return json.dumps(to_mapping(self), indent=2, sort_keys=True) + "\n"

    @property
    def cache(self) -> Cache:
        """The settings of its columns."""
        shapes = self.shapes
        return build(Cache, [Layer(NAME, {"dtype": shapes.dtype, "top_logits": shapes.top_logits})])

    @property
    def exact(self) -> torch.dtype:
        """The type of exact values."""
        return torch.float64 if self.shapes.exact == "float64" else torch.float32


def versions(pixels: str = PIXELS) -> dict[str, str]:
    """Today's, of what makes views with `data.pixels`."""
    known = {name: (version(name), count) for name, count in PACKAGES.items()}
    if pixels != PIXELS:
        import cv2
        import simplejpeg

        known |= {"simplejpeg": (simplejpeg.__version__, 2), "opencv": (cv2.__version__, 2)}
    return {
        name: ".".join(text.split("+")[0].split(".")[:count])
        for name, (text, count) in known.items()
    }


def path_of(pixels: str) -> dict[str, str]:
    """The part of a recipe that names the pixel path; nothing for the one that older caches know."""
    return {} if pixels == PIXELS else {"pixels": pixels}


def read_manifest(folder: Path) -> Manifest | None:
    """A cache's manifest; None where there is no folder, or an empty one.

    Raises:
        UserError: the folder holds something else, or the manifest is damaged.
    """
    try:
        text = read_small(folder / NAME, LIMITS.description_bytes)
    except FileNotFoundError:
        if _is_free(folder):
            return None
        raise UserError(
            f"{folder} is no teacher cache (it has no {NAME}): name a new or an empty folder, or one "
            "that --teacher-cache made"
        ) from None
    except (OSError, Refused) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the teacher cache {folder}: {NAME} {reason}") from None
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(f"{folder / NAME} is of another version: record a new cache")
    except (ValueError, RecursionError):
        raise UserError(f"{folder / NAME} is damaged: it is no JSON; record a new cache") from None
    try:
        return _checked(build(Manifest, [Layer("", check_tree(values))]))
    except (UserError, Refused) as error:
        raise UserError(f"{folder / NAME} is damaged ({error}): record a new cache") from None


def _checked(manifest: Manifest) -> Manifest:
    """The manifest; a UserError for sizes that no epoch and no teacher has."""
    shapes = manifest.shapes
    images = shapes.batch_size * shapes.steps
    if images > LIMITS.cached_images or shapes.steps > LIMITS.cached_steps:
        raise UserError(f"an epoch of {images:,} images in {shapes.steps:,} steps")
    if len(shapes.fields) > LIMITS.cached_fields:
        raise UserError(f"more than {LIMITS.cached_fields:,} fields")
    for name, shape in shapes.fields.items():
        dimensions = 1 if name == LOGITS else 3
        if not 1 <= len(shape) <= dimensions or math.prod(shape) > LIMITS.cached_values:
            raise UserError(f"shapes.fields.{name} {list(shape)} is no row of an image")
    if (shapes.top_logits or 0) >= min(shapes.fields.get(LOGITS, (math.inf,))):
        raise UserError(f"shapes.top_logits {shapes.top_logits}: there are not so many")
    assert manifest.cache  # its settings are some that there are
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write a cache's manifest, unless another process did it first; returns the one that is there.

    Raises:
        UserError: the folder cannot be written.
    """
    draft = folder / f".{NAME}.{os.uname().nodename}.{os.getpid()}"
    try:
        write_text(draft, manifest.text())
        try:
            os.link(draft, folder / NAME)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not (folder / NAME).exists():
                os.replace(draft, folder / NAME)
        draft.unlink(missing_ok=True)
    except (OSError, RunFailed) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the teacher cache {folder} ({reason}): name a folder that you can write"
        ) from None
    there = read_manifest(folder)
    assert there is not None
    return there


def check_same(folder: Path, there: Manifest, ours: Manifest) -> None:
    """Raise a UserError that names what differs between a cache and a run.

    `ours` may lack what only a loaded teacher tells: its hash, its fields.
    """
    # Whether it knows the classes is whether its logits are kept: the fields say it.
    ignore = ["shapes.fields", "teacher.knows_classes"]
    if not ours.teacher.sha256:
        ignore.append("teacher.sha256")
    sides = asdict(there), asdict(ours)
    for side in sides:
        side["recipe"].setdefault("pixels", PIXELS)
    changed = differences(*sides, ignore)
    if lacking := [n for n in ours.shapes.fields if n not in there.shapes.fields]:
        changed.append(f"fields: {', '.join(there.shapes.fields)} -> {', '.join(lacking)} too")
    for name, shape in ours.shapes.fields.items():
        if shape and there.shapes.fields.get(name, shape) != shape:
            changed.append(f"{name}: {there.shapes.fields[name]} -> {shape}")
    if changed:
        shown = "; ".join(_short(change) for change in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"the teacher cache {folder} was recorded otherwise ({shown}{more}): take the settings "
            "that it was recorded with, or another --teacher-cache"
        )


def _short(change: str) -> str:
    """A difference without the name of its section, and with hashes of eight digits."""
    change = change.removeprefix("recipe.")
    words = [word[:8] if len(word) == 64 and word.isalnum() else word for word in change.split()]
    text = " ".join(words)
    return text if len(text) <= 120 else text[:117] + "..."


def _is_free(folder: Path) -> bool:
    """Whether nothing visible is there."""
    try:
        return all(name.startswith(".") for name in os.listdir(folder))
    except FileNotFoundError:
        return True
    except OSError as error:
        raise UserError(f"{folder} is no teacher cache ({error.strerror})") from None
