"""Somebody's weights, and what the run that made them says about them.

A run's folder, one of its checkpoints, or anyone's file of weights, read as data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from srd.errors import UserError
from srd.files.checkpoint import load_content, load_file, weights_in
from srd.run.folder import RunFolder


class Source(NamedTuple):
    """Weights by name, and what is known of their making; empty for a file without a run."""

    path: Path  # of the weights
    run_name: str | None  # of the run whose folder it is in
    weights: dict[str, Tensor]
    metadata: Mapping[str, str]  # of a safetensors file
    settings: Mapping[str, Any] | None  # the run's configuration, where a checkpoint holds it
    config_file: Path | None  # the run's config.yaml
    facts: Mapping[str, Any]  # the run's identity and, when it has finished, its result
    accuracy: Mapping[str, Any]  # of these very weights, as the run measured it; {} if it did not

    @property
    def measured(self) -> str:
        """The accuracy in words."""
        if not self.accuracy:
            return "not measured"
        top5 = f", top-5 {self.accuracy['acc5']:.2f} %" if "acc5" in self.accuracy else ""
        images = (
            f" on {self.accuracy['images']} held-out images" if "images" in self.accuracy else ""
        )
        return f"top-1 {self.accuracy['acc1']:.2f} %{top5}{images}"


def read_source(path: str | Path) -> Source:
    """Read a run's folder (its best student), a run's checkpoint, or a file of weights.

    Raises:
        UserError: there is nothing, or nothing with weights in it.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        student = RunFolder(path).student
        if not student.is_file():
            raise UserError(
                f"no student in {path}: looked for {student.name}; give a run's folder or a "
                "checkpoint file"
            )
        path = student
    content, metadata = load_content(path)
    run = _run_of(path)
    result = (run.read_result() or {}) if run else {}
    made_here = isinstance(content.get("config"), dict) and "position" in content
    settings = dict(content["config"]) if made_here else None
    identity = _facts(settings.pop("identity", {})) if settings is not None else {}
    if run and settings is None and not result and run.best.is_file():
        identity = _facts(_facts(load_file(run.best).get("config")).get("identity"))
    return Source(
        path=path,
        run_name=run.path.resolve().name if run else None,
        weights=weights_in(content, path),
        metadata=metadata,
        settings=settings,
        config_file=run.config if run else None,
        facts={**identity, **result},
        accuracy=_accuracy(_epoch(content, metadata), result),
    )


def _run_of(path: Path) -> RunFolder | None:
    """The folder of the run that a file belongs to."""
    for folder in (path.parent, path.parent.parent):
        run = RunFolder(folder)
        if path.parent in (run.path, run.checkpoints) and run.config.is_file():
            return run
    return None


def _facts(value: Any) -> dict[str, Any]:
    """A mapping in a file, without tensors; {} where there is something else."""
    mapping = value if isinstance(value, dict) else {}
    return {name: fact for name, fact in mapping.items() if not isinstance(fact, Tensor)}


def _epoch(content: Mapping[str, Any], metadata: Mapping[str, str]) -> int | None:
    """The epoch after which a run of ours wrote these weights."""
    told = metadata.get("epoch", "")
    if told.isdecimal() and len(told) < 10:
        return int(told)
    epoch = _facts(content.get("position")).get("epoch")
    return epoch if type(epoch) is int else None


def _accuracy(epoch: int | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` says of the weights of `epoch`; {} where it says nothing of them."""
    numbers = {name: value for name, value in result.items() if type(value) in (int, float)}
    if epoch is None or "acc1" not in numbers:
        return {}
    best, last = numbers.get("best_epoch"), numbers.get("epochs", 0) - 1
    full = best if "tested" in result else last  # the epoch that acc1, acc5 and loss belong to
    if epoch == full:
        names = ("acc1", "acc5", "loss", "images")
        return {**{name: numbers[name] for name in names if name in numbers}, "epoch": epoch}
    if epoch == best and {"best_acc1", "images"} <= set(numbers):
        return {"acc1": numbers["best_acc1"], "images": numbers["images"], "epoch": epoch}
    return {}
