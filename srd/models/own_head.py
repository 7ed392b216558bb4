"""The classes of a teacher's own head: what its student is built for where pictures have no labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
from torch import Tensor

from srd.config.fields import Teacher
from srd.files.weights import load_claimed, weights_in
from srd.models.students import find
from srd.models.teacher import full_teacher_name, weights_of

REGISTERED_HEAD = "head"  # of the students that are registered here


def classes_of(teacher: Teacher) -> int:
    """Classes of the teacher's head; 0 where it has none, or where that cannot be told.

    Raises:
        UserError: an unknown name, a missing or foreign file.
    """
    registered = find(teacher.name, role="teacher") is not None
    file = weights_of(teacher)
    usual = timm.get_pretrained_cfg(full_teacher_name(teacher.name), allow_unregistered=True)
    if file is None:
        return usual.num_classes if usual is not None and not registered else 0
    names = REGISTERED_HEAD if registered or usual is None else usual.classifier
    heads = names if isinstance(names, tuple | list) else [names]
    return _width(weights_in(load_claimed(Path(file))[1], file), [head for head in heads if head])


def _width(weights: Mapping[str, Tensor], heads: list[str]) -> int:
    for name in (f"{head}.{kind}" for head in heads for kind in ("weight", "bias")):
        if name in weights and weights[name].ndim:
            return weights[name].shape[0]
    return 0
