"""Which Python objects a YAML file may name.

A torchdistill configuration can import and call anything. Here a file is checked before any of it
runs: what it names must come from the parts of a few packages that a configuration needs.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from srd.errors import UserError

# A name must start with one of these, and the object found must have been defined in one of ROOTS.
ALLOWED = (
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torch.device",
    "torch.float32",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.create_model",
    "timm.data",
    "timm.layers",
    "timm.loss",
    "timm.models",
    "timm.optim",
    "timm.scheduler",
    "torchdistill.core",
    "torchdistill.datasets",
    "torchdistill.losses",
    "torchdistill.models",
    "torchdistill.optim",
    "srd",
    "resnet",
)
ROOTS = ("torch", "torchvision", "timm", "torchdistill", "srd", "resnet")
# Inside ALLOWED, but they load files with pickle, write files, or run what they are given.
REFUSED = (
    "torchvision.datasets.utils",
    "torchvision.datasets.folder.default_loader",
    "timm.models.load_checkpoint",
    "timm.models.load_state_dict",
    "timm.models.resume_checkpoint",
    "timm.models.clean_state_dict",
    "timm.models.push_to_hf_hub",
    "timm.models.save_for_hf",
    "torchdistill.models.util",
    "srd.run",
    "srd.checkpoint",
    "srd.classifier",
    "srd.export",
    "srd.graphs",
    "srd.hub",
    "srd.predict",
    "srd.source",
    "resnet.export",
    "srd.download",
    "srd.places",
    "srd.weights",
    "resnet.evaluation",
    "resnet.main",
    "resnet.runner",
)


def check_name(dotted: str, where: str) -> None:
    """Raise a UserError unless a configuration may name `dotted`.

    Importing an allowed module is all that happens here; nothing is called.
    """
    parts = dotted.split(".")
    if any(part.startswith("_") or not part.isidentifier() for part in parts):
        raise _refusal(dotted, where)
    if not _under(dotted, ALLOWED) or _under(dotted, REFUSED):
        raise _refusal(dotted, where)
    check_object(resolve(dotted, where), dotted, where)


def check_module(name: str, where: str) -> None:
    """Raise a UserError unless `dependencies` may import the module `name`."""
    if name.split(".")[0] not in ROOTS or not _under(name, ALLOWED) or _under(name, REFUSED):
        raise _refusal(name, where)


def check_object(found: Any, dotted: str, where: str) -> None:
    """Raise a UserError for a module, or for an object that was defined outside ROOTS."""
    if isinstance(found, (str, int, float, tuple, list, dict, type(None))):
        return
    definer = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    module = getattr(definer, "__module__", None) or ""
    if isinstance(found, ModuleType) or module.split(".")[0] not in ROOTS:
        raise _refusal(dotted, where)


def resolve(dotted: str, where: str) -> Any:
    """The object that `dotted` names: the longest importable prefix, then attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise UserError(f"{where}: there is no {dotted}")


def _under(dotted: str, prefixes: tuple[str, ...]) -> bool:
    return any(dotted == prefix or dotted.startswith(prefix + ".") for prefix in prefixes)


def _refusal(dotted: str, where: str) -> UserError:
    return UserError(
        f"{where} names {dotted}: refused, a configuration may use {', '.join(ROOTS)} only, and "
        "not all of them; --trust-config runs a file that you have read and trust"
    )
