"""Which Python objects a YAML file may name.

A torchdistill configuration can import and call anything. Here a file is checked before any of it
runs: what it names must come from, and have been defined in, the parts of a few packages that a
configuration needs. What it reaches while it is built (`!getattr`) is held to the same.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from srd.errors import UserError

# A name must start with one of these, and so must the place where the object was defined: modules
# hold others that they import, `torch.nn.modules.module` all of torch.
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
    "srd.data.digits",
    "srd.method",
    "resnet.extension",
)
# The home of torch.float32's class, and of torch.nn.functional.gelu.
DEFINED = (*ALLOWED, "torch.dtype", "torch._C._nn")
ROOTS = ("torch", "torchvision", "timm", "torchdistill", "srd", "resnet")
PLAIN = (str, int, float, bool, tuple, list, dict, type(None))
# Inside ALLOWED, but they load files with pickle, write files, or run what they are given.
REFUSED = (
    "torch.utils.data.datapipes",
    "torchvision.datasets.folder.default_loader",
    "torchvision.datasets.lsun",
    "torchvision.datasets.utils",
    "timm.data.dataset_factory",
    "timm.data.readers",
    "timm.models._builder",
    "timm.models._helpers",
    "timm.models._hub",
    "torchdistill.models.registry.get_model",
    "torchdistill.models.util",
)


def check_name(module: str, attributes: Sequence[str], where: str) -> None:
    """Raise a UserError unless a configuration may name this attribute of this module.

    Importing an allowed module is all that happens here; nothing is called.
    """
    dotted = ".".join((module, *attributes))
    if any(part.startswith("_") or not part.isidentifier() for part in dotted.split(".")):
        raise _refusal(dotted, where)
    if not _under(dotted, ALLOWED) or _under(dotted, REFUSED):
        raise _refusal(dotted, where)
    try:
        found: Any = import_module(module)
        for name in attributes:
            found = getattr(found, name)
    except (ImportError, AttributeError):
        raise UserError(f"{where}: there is no {dotted}") from None
    check_object(found, dotted, where)


def check_module(name: str, where: str) -> None:
    """Raise a UserError unless `dependencies` may import the module `name`."""
    if not _under(name, ALLOWED) or _under(name, REFUSED):
        raise _refusal(name, where)


def check_object(found: Any, dotted: str, where: str) -> None:
    """Raise a UserError for a module, or for an object that was defined outside DEFINED."""
    if type(found) in PLAIN:
        return
    definer = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    home = f"{getattr(definer, '__module__', '')}.{getattr(definer, '__qualname__', '')}"
    if isinstance(found, ModuleType) or not _under(home, DEFINED) or _under(home, REFUSED):
        raise _refusal(dotted, where)


def forbid_pickled_code() -> None:
    """Make every `torch.load` of this process read weights only, whatever its caller asks for.

    timm's and torchdistill's own loading of weights runs what a file holds, in some versions.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def _under(dotted: str, prefixes: tuple[str, ...]) -> bool:
    return any(dotted == prefix or dotted.startswith(prefix + ".") for prefix in prefixes)


def _refusal(dotted: str, where: str) -> UserError:
    return UserError(
        f"{where} names {dotted}: refused, a configuration may use {', '.join(ROOTS)} only, and "
        "not all of them; --trust-config runs a file that you have read and trust"
    )
