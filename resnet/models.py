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
from srd.errors import UserError, nearest
from srd.files.weights import load_into


class Models(NamedTuple):
    """The networks of a recipe; the teacher is None for plain training."""

    student: nn.Module
    student_name: str
    teacher: nn.Module | None
    teacher_name: str | None


def student_section(recipe: Recipe) -> dict[str, Any]:
    """The recipe's entry for the student, or for the one model of plain training."""
    models = recipe.config["models"]
    section: dict[str, Any] = models.get("student_model", models.get("model"))
    return section


def load_models(recipe: Recipe, device: torch.device) -> Models:
    """Build teacher and student, and load the weights that the recipe names, as data."""
    import_dependencies(recipe.config.get("dependencies"))
    student = student_section(recipe)
    teacher = recipe.config["models"].get("teacher_model")
    if student is None:
        raise UserError("models: needs a student_model (or a model, for plain training)")
    return Models(
        _load_model(student, "student").to(device),
        student["key"],
        _load_model(teacher, "teacher").to(device) if teacher else None,
        teacher["key"] if teacher else None,
    )


def _load_model(section: dict[str, Any], role: str) -> nn.Module:
    key = section.get("key")
    known = [name for name, value in vars(torchvision_models).items() if callable(value)]
    known = [
        name for name in known if name.islower() and not name.startswith(("_", "get_", "list_"))
    ]
    if not isinstance(key, str) or (key not in known and key not in MODEL_DICT):
        raise UserError(f"unknown {role} model {key!r}{nearest(str(key), [*known, *MODEL_DICT])}")
    section = {"kwargs": {}, **section}
    model = get_image_classification_model(section) or get_model(key, None, **section["kwargs"])
    file = section.get("src_ckpt")
    if file and Path(file).expanduser().is_file():
        load_into(model, Path(file).expanduser(), f"the {role} {key}")
    elif file and role == "teacher":
        raise UserError(
            f"no weights for the teacher {key} at {file} (models.teacher_model.src_ckpt)"
        )
    return model
