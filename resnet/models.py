"""The networks of a recipe, their weights read as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchdistill.common.main_util import import_dependencies
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import MODEL_DICT, get_model
from torchvision import models as torchvision_models

from resnet.recipe import Recipe
from srd.errors import UserError, explained, nearest
from srd.files.limits import LIMITS
from srd.files.weights import load_into
from srd.models.sizes import at_most


class Models(NamedTuple):
    """The networks of a recipe; the teacher is None for plain training."""

    student: nn.Module
    student_name: str
    teacher: nn.Module | None
    teacher_name: str | None
    teacher_lacks: str | None = None  # the file of its weights that is not there; a cache has all


def student_section(recipe: Recipe) -> dict[str, Any]:
    """The recipe's entry for the student, or for the one model of plain training."""
    models = recipe.config["models"]
    section: dict[str, Any] = models.get("student_model", models.get("model"))
    return section


def load_models(
    recipe: Recipe, device: torch.device, *, testing: bool = False, cached: bool = False
) -> Models:
    """Build teacher and student, and load the weights that the recipe names, as data.

    Args:
        testing: the student's weights are looked for elsewhere, too.
        cached: the teacher's may be gone (`Models.teacher_lacks`).

    Raises:
        UserError: no such network, arguments that it does not take, weights that are not there or
            do not fit.
    """
    with explained("dependencies"):
        import_dependencies(recipe.config.get("dependencies"))
    student = student_section(recipe)
    teacher = recipe.config["models"].get("teacher_model")
    if student is None:
        raise UserError("models: needs a student_model (or a model, for plain training)")
    file = teacher.get("src_ckpt") if teacher and cached else None
    return Models(
        _load_model(student, "student", may_lack=testing).to(device),
        student["key"],
        _load_model(teacher, "teacher", may_lack=cached).to(device) if teacher else None,
        teacher["key"] if teacher else None,
        file if file and not Path(file).expanduser().is_file() else None,
    )


def _load_model(section: dict[str, Any], role: str, *, may_lack: bool = False) -> nn.Module:
    key = section.get("key")
    known = [name for name, value in vars(torchvision_models).items() if callable(value)]
    known = [
        name for name in known if name.islower() and not name.startswith(("_", "get_", "list_"))
    ]
    if not isinstance(key, str) or (key not in known and key not in MODEL_DICT):
        raise UserError(f"unknown {role} model {key!r}{nearest(str(key), [*known, *MODEL_DICT])}")
    section = {**section, "kwargs": section.get("kwargs") or {}}
    what = f"the {role} {key} cannot be built with {section['kwargs']}"
    with explained(what), at_most(LIMITS.parameters):
        model = get_image_classification_model(section) or get_model(key, None, **section["kwargs"])
    if not isinstance(model, nn.Module):
        raise UserError(f"the {role} {key} is no network, but a {type(model).__name__}")
    file = section.get("src_ckpt")
    # A student's may be where its run puts it, and not be there yet.
    if file and (
        Path(file).expanduser().is_file() or not (may_lack or file == section.get("dst_ckpt"))
    ):
        if not Path(file).expanduser().is_file():
            raise UserError(
                f"no weights for the {role} {key} at {file} (its src_ckpt under models)"
            )
        load_into(model, Path(file).expanduser(), f"the {role} {key}")
    return model
