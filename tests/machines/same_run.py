"""Whether two runs ended in the same bits: python tests/machines/same_run.py FOLDER FOLDER."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from srd.files.checkpoint import load_file, load_weights
from srd.run.log import read_metrics


def differences(one: Path, other: Path) -> list[str]:
    """What differs in weights, optimizer, best student and metrics; speeds and settings may."""
    found: list[str] = []
    for name in ("last.pth", "best.pth"):
        mine, theirs = (_state(run / "checkpoints" / name) for run in (one, other))
        found += _compare(mine, theirs, name)
    name = "student.safetensors"
    found += _compare(load_weights(one / name), load_weights(other / name), name)
    found += _compare(_rows(one), _rows(other), "metrics.jsonl")
    return found


def _state(path: Path) -> dict[str, Any]:
    state = load_file(path)
    del state["position"]["seconds"], state["config"]
    return state


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def _compare(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            yield f"{where}: other keys"
        for key in one.keys() & other.keys():
            yield from _compare(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} entries"
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from _compare(*pair, f"{where}/{number}")
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"


if __name__ == "__main__":
    found = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"differ: {'; '.join(found[:5])}" if found else f"{sys.argv[2]}: the same bits")
    sys.exit(bool(found))
