"""Distil vision models with a projector: the simple recipe, and a house for the methods beside it.

What is public is here, and is imported when it is first used: `import srd` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srd.errors import UserError
    from srd.files.weights import load_weights
    from srd.method.simple_recipe import SimpleRecipeLoss
    from srd.models.students import create_student
    from srd.training.one_line import train

    __version__: str

__all__ = ["SimpleRecipeLoss", "UserError", "create_student", "load_weights", "train"]

HOMES = {
    "SimpleRecipeLoss": "srd.method.simple_recipe",
    "UserError": "srd.errors",
    "create_student": "srd.models.students",
    "load_weights": "srd.files.weights",
    "train": "srd.training.one_line",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from srd.installed import version

        return version()
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
