"""Everybody's files of weights, read as data.

Loading never executes what a file asks for: `srd.files.reading` builds tensors and plain containers
only, from one reading of the file, within `srd.files.limits`. Two classes that released files pickle
(the configuration of yacs and argparse's namespace) come back as plain mappings, without those
packages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from srd.errors import UserError
from srd.files.hashes import check_claim
from srd.files.locate import locate
from srd.files.opened import OpenedFile, Refused, open_once
from srd.files.reading.formats import Content, read_content
from srd.printable import printable

# Where files met in the wild keep their weights, in the order in which to look, and where timm and
# the DeiT authors keep the moving average of them.
WEIGHT_ENTRIES = ("model", "state_dict", "model_state_dict")
EMA_ENTRIES = ("state_dict_ema", "model_ema")
WRAPPER_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
COUNTER = "num_batches_tracked"  # of a batch norm; weights of before 2018 have none
# Where wrappers keep what was trained beside the student: the released DeiT files and ours beside
# its weights, torchdistill's wrappers beside a `model`.
PROJECTOR_PREFIX = "distillation_loss."
STUDENT_PREFIX = "model."
COMPANIONS = (PROJECTOR_PREFIX, "linear.", "norm_layer.")


class Parts(NamedTuple):
    """A file's weights: the student's under its own names, and what was trained beside it."""

    student: dict[str, Tensor]
    extras: dict[str, Tensor]


def load_weights(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """The student's weights in a file, by its own names, on the CPU; never executes the file.

    Reads safetensors and torch files: a plain state dict, or one under `model` or `state_dict`
    as in the released checkpoints, torchdistill's, timm's and our own. Prefixes of wrappers are
    taken off, and a projector beside the student is left out: `load_parts` has both.

    Args:
        path: a file, a run's folder, or `hf-hub:user/repository[@revision][/file]`.
        ema: the moving average (`state_dict_ema`, `model_ema`) instead of the weights themselves.
            A file that holds nothing else gives its average anyway.

    Raises:
        UserError: the file is missing, damaged, asks for code, or holds no weights.
    """
    return load_parts(path, ema).student


def load_parts(path: str | Path, ema: bool = False) -> Parts:
    """Student and extras in a file; see `load_weights`."""
    return parts_in(load_file(path), path, ema)


def weights_in(
    content: Mapping[str, Any], path: str | Path, ema: bool = False
) -> dict[str, Tensor]:
    """The student's weights in what `load_file` read from `path`, by its own names."""
    return parts_in(content, path, ema).student


def parts_in(content: Mapping[str, Any], path: str | Path, ema: bool = False) -> Parts:
    """Student and extras in what `load_file` read from `path`."""
    weights = _entry(content, path, ema)
    bare: dict[str, Tensor] = {}
    for name, value in weights.items():
        if _bare(name) in bare:
            raise UserError(f"{path} holds {_some([_bare(name)])} twice, with and without a prefix")
        bare[_bare(name)] = value
    return split(bare)


def split(weights: Mapping[str, Tensor]) -> Parts:
    """Student and extras among weights by bare name.

    Where all names start with `model.` or with one of COMPANIONS, the student is a wrapper's
    `model`. Else it is everything but the projector.
    """
    wrapped = any(name.startswith(STUDENT_PREFIX) for name in weights) and all(
        name.startswith((STUDENT_PREFIX, *COMPANIONS)) for name in weights
    )
    student, extras = {}, {}
    for name, value in weights.items():
        if wrapped and name.startswith(STUDENT_PREFIX):
            student[_bare(name.removeprefix(STUDENT_PREFIX))] = value
        elif wrapped or name.startswith(PROJECTOR_PREFIX):
            extras[name] = value
        else:
            student[name] = value
    return Parts(student, extras)


def _entry(content: Mapping[str, Any], path: str | Path, ema: bool) -> dict[str, Tensor]:
    """The state dict in a file's content."""
    entries = {key: _tensors(content[key]) for key in (*WEIGHT_ENTRIES, *EMA_ENTRIES)
               if isinstance(content.get(key), Mapping)}  # fmt: skip
    averages = [entries[key] for key in EMA_ENTRIES if entries.get(key)]
    if ema and not averages:
        raise UserError(f"{path} holds no moving average (no {' nor '.join(EMA_ENTRIES)})")
    plain = [entries[key] for key in WEIGHT_ENTRIES if entries.get(key)]
    candidates = [*averages, *plain] if ema else [*plain, *averages, _tensors(content)]
    weights = next(filter(None, candidates), None)
    if weights is None:
        raise UserError(
            f"{path} holds no weights: found {_some(map(str, content))}, expected a state dict, "
            f"or one under {' or '.join(repr(key) for key in WEIGHT_ENTRIES)}"
        )
    return weights


def _tensors(entry: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in entry.items() if isinstance(value, Tensor)}


def load_into(
    model: nn.Module,
    path: str | Path,
    what: str,
    *,
    content: Mapping[str, Any] | None = None,
) -> list[str]:
    """Load a file's weights into `model`, strictly.

    Args:
        what: the model, for the message.
        content: what `load_file` read from `path`, where that is done already.

    Returns:
        The names of what was trained beside it, such as a projector's, fit to be shown.

    Raises:
        UserError: as `load_weights`, or the weights do not fit.
    """
    weights, extras = parts_in(load_file(path) if content is None else content, path)
    weights = with_counters(weights, model.state_dict())
    explain_mismatch(model.state_dict(), weights, path, what)
    load_plain(model, weights)
    return list(map(printable, extras))


def load_plain(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all of a network's weights, with the notes on their version that plain files lack.

    torchvision's MNASNet takes none without.
    """
    state = model.state_dict()
    state.update(weights)
    model.load_state_dict(state)


def with_counters(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, with a network's own counters of batches where old files have none."""
    return {name: own[name] for name in own if name.endswith(COUNTER)} | dict(weights)


def load_file(path: str | Path) -> dict[str, Any]:
    """Everything in a checkpoint file, as tensors and plain containers, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or asks for anything else to be built.
    """
    return load_content(path).entries


def load_content(path: str | Path, *, checked: bool = False) -> Content:
    """`load_file`, and the metadata of a safetensors file.

    Args:
        checked: see `srd.files.reading.formats.read_content`.
    """
    return _load(locate(path), lambda opened: read_content(opened, checked=checked))


def load_claimed(file: Path) -> tuple[str, dict[str, Any]]:
    """A file's SHA-256, compared with the digits in its name where it has any, and `load_file`."""
    digests: list[str] = []

    def read(opened: OpenedFile) -> Content:
        digests.append(check_claim(file, opened.sha256()))
        return read_content(opened)

    content = _load(file, read)
    return digests[0], content.entries


def _load(file: Path, read: Callable[[OpenedFile], Content]) -> Content:
    """What `read` makes of a file that is opened once; what is wrong with it, in a line."""
    try:
        with open_once(file) as opened:
            content = read(opened)
    except UserError:
        raise
    except Refused as refusal:
        raise UserError(f"{file} {refusal}") from None
    except MemoryError:
        raise UserError(f"{file} does not fit into memory") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply: refused") from None
    except PermissionError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
    except Exception as error:  # readers of damaged files raise whatever they meet
        detail = printable(" ".join(str(error).split())[:120]) or type(error).__name__
        raise UserError(f"{file} is damaged or not a checkpoint ({detail})") from None
    if not isinstance(content.entries, dict):
        kind = type(content.entries).__name__
        raise UserError(f"{file} holds a {kind}, not a checkpoint")
    return content


def _bare(name: str) -> str:
    """`name` without the prefixes that wrappers put before it."""
    return WRAPPER_PREFIXES.sub("", name)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = [printable(name[:60]) for name in names]
    return (", ".join(names[:most]) or "nothing") + (", ..." if len(names) > most else "")


def explain_mismatch(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | Path, what: str
) -> None:
    """Check that `weights` has every tensor of `expected`, in its shape, and nothing else.

    Raises:
        UserError: names the keys and shapes that differ, the shortest list first.
    """
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    lists = {"missing": missing, "unexpected": extra, "of another shape": shapes}
    parts = [
        f"{len(names)} {label}: {_some(names, 3)}"
        for label, names in sorted(lists.items(), key=lambda item: len(item[1]))
        if names
    ]
    if parts:
        raise UserError(f"{path} does not fit {what}: " + "; ".join(parts))
