"""torchdistill's complaints about a file, in one line that says which entry lacks or misnames what."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn
from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT
from torchdistill.losses.registry import (
    HIGH_LEVEL_LOSS_DICT,
    LOSS_DICT,
    LOSS_WRAPPER_DICT,
    LOW_LEVEL_LOSS_DICT,
    MIDDLE_LEVEL_LOSS_DICT,
)
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT
from torchdistill.optim.registry import OPTIM_DICT, SCHEDULER_DICT

from srd.errors import UserError, explained, nearest

REGISTRIES = (
    HIGH_LEVEL_LOSS_DICT, MIDDLE_LEVEL_LOSS_DICT, LOW_LEVEL_LOSS_DICT, LOSS_DICT, LOSS_WRAPPER_DICT,
    AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, OPTIM_DICT, SCHEDULER_DICT,
    FORWARD_PROC_FUNC_DICT,
)  # fmt: skip


@contextmanager
def box_explained(train: Any) -> Iterator[None]:
    """Code of torchdistill that builds what `train`, that section of the file, says.

    Raises:
        UserError: in the place of whatever it raises.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torchdistill's, torch's, a data loader's: no common class
        raise UserError(_explain(error, train)) from None


@contextmanager
def step_explained() -> Iterator[None]:
    """Code of torchdistill that makes a first step.

    Raises:
        UserError: in the place of whatever it raises.
    """
    with explained("train: a first step fails"):
        try:
            yield
        except KeyError as error:
            reader = next((m for m in reversed(_owners(error)) if isinstance(m, nn.Module)), None)
            if reader is None:
                raise
            raise UserError(
                f"train: a first step fails: {type(reader).__name__} finds no {error}: no forward_hook "
                "gives it, nor the data"
            ) from None


def _explain(error: Exception, train: Any) -> str:
    """The complaint, with the nearest name that is known, or that stands there in its place."""
    message = " ".join(str(error).split())
    unknown = re.search(r"`(\w+)` (?:registered|is not expected)", message)
    if unknown:
        known = [name for registry in REGISTRIES for name in registry]
        hint = nearest(unknown.group(1), known) if unknown.group(1) != "None" else ": name one"
        return f"train: {message}{hint}"
    lacks = re.search(r"(\w+)\.__init__\(\) missing .*?: (.+)", message)
    if lacks:
        return _lacking(lacks[1], lacks[2], train)
    for frame in _frames(error):
        if frame.f_code.co_name == "set_hooks" and isinstance(error, AttributeError):
            seen = frame.f_locals
            model, path = seen.get("unwrapped_org_model"), seen.get("target_module_path")
            if not isinstance(model, nn.Module) or not isinstance(path, str):
                continue
            hint = nearest(path, [name for name, _ in model.named_modules()])
            return f"train: {type(model).__name__} has no layer {path!r}{hint}"
    if isinstance(error, KeyError):
        for owner in [type(built).__name__ for built in _owners(error, "__init__")][-1:]:
            if any(_entries(train, owner)):
                return _lacking(owner, message, train)
        return f"train: a setting is missing: {message}"
    return f"train: {message[:300] or type(error).__name__}"


def _lacking(owner: str, names: str, train: Any) -> str:
    """That the file is incomplete, and the setting that it may have meant."""
    lacking = re.findall(r"'(\w+)'", names)
    given = {key for entry in _entries(train, owner) for key in _keys(entry)} - set(lacking)
    meant = [m for n in lacking for m in difflib.get_close_matches(n, sorted(given), 1, 0.5)]
    told = f"train: the file does not give {owner} what it needs: {names}"
    if not meant:
        return told
    return f"{told} (it gives {', '.join(map(repr, meant))}, which {owner} does not read)"


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _owners(error: BaseException, method: str = "") -> list[Any]:
    """The objects whose methods (or whose one) led to the error, the innermost last."""
    return [
        frame.f_locals["self"]
        for frame in _frames(error)
        if "self" in frame.f_locals and method in ("", frame.f_code.co_name)
    ]


def _entries(value: Any, owner: str) -> Iterator[Mapping[str, Any]]:
    """The entries `{key: owner, ...}` of a section."""
    if isinstance(value, Mapping):
        if value.get("key") == owner:
            yield value
        for item in value.values():
            yield from _entries(item, owner)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, owner)


def _keys(value: Any) -> Iterator[str]:
    """All keys of a section, however deep."""
    if isinstance(value, Mapping):
        yield from map(str, value)
        for item in value.values():
            yield from _keys(item)
