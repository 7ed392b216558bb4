"""Run folders as runs leave them, made in no time: what reports are made from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srd.config.fields import Config
from srd.config.layers import dump_yaml, to_mapping
from srd.run.predictions import Predictions, Told, worth_a_look, write_predictions


def write_run(
    folder: Path,
    acc1: list[float],
    *,
    settings: dict[str, Any] | None = None,
    finished: bool = True,
    projector: bool = False,
    **result: Any,
) -> Path:
    """What a run of as many epochs leaves that the report reads; `settings` by dotted names."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"kind": "eval", "model": "teacher", "epoch": 0, "step": 0, "acc1": 99.0}
    ]
    for epoch, value in enumerate(acc1):
        at = {"epoch": epoch, "step": 10 * (epoch + 1)}
        rows.append({"kind": "step", **at, "loss": 2.0})
        rows.append({"kind": "epoch", **at, "loss": 3.0 / (epoch + 1)})
        measured: dict[str, Any] = {}
        if projector:
            values = list(np.geomspace(10, 0.1 / (epoch + 1), 24))
            measured = {"effective_rank": 20.0 - epoch, "correlation": 0.2 / (epoch + 1)}
            measured["singular_values"] = values
        own = {"acc1": value, "loss": 0.5, "agreement": value - 1}
        rows.append({"kind": "eval", **at, **own, **measured})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = to_mapping(Config(name=folder.name))
    for key, value in (settings or {}).items():
        section = values
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    (folder / "config.yaml").write_text(dump_yaml(values))
    if finished:
        told = {
            "model": "deit_tiny", "trained": "student", "method": "srd", "train_images": 100,
            "images": 500, "acc1": acc1[-1], "best_acc1": max(acc1), "seconds": 10.0, **result,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(told))
    return folder


def write_told(
    folder: Path, class_names: list[str], *, images: int = 400, teacher: bool = True,
    examples: int = 8,
) -> Predictions:  # fmt: skip
    """Predictions of a student that is right in two of three images, and of a better teacher."""
    draw, classes = np.random.RandomState(0), len(class_names)
    targets = draw.randint(0, classes, images)

    def tell(right: float) -> Told:
        wrong = draw.uniform(size=images) > right
        said = np.where(wrong, (targets + draw.randint(0, 3, images)) % classes, targets)
        sure = draw.uniform(1 / 3, 1, images)
        return Told(images=np.arange(images), targets=targets, classes=said, probabilities=sure)

    names = [f"/data/photos/val/{class_names[t][:40]}/{n}.jpg" for n, t in enumerate(targets)]
    student, taught = tell(0.5), tell(0.9) if teacher else None
    shown = worth_a_look(student, taught, examples)
    pictures = {int(n): picture(int(n)) for n in shown}
    predictions = Predictions(
        class_names=class_names, names=names, student=student, teacher=taught, examples=pictures
    )
    write_predictions(folder / "predictions.json", predictions)
    return predictions


def picture(seed: int) -> bytes:
    """A JPEG thumbnail."""
    pixels = np.random.RandomState(seed).randint(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()
