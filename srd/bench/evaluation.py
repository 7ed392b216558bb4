"""Evaluation: images through a student in inference."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from srd.bench.machine import matrix_rate, operations
from srd.bench.step import random_batch
from srd.bench.timing import Line, Sizes, in_turn
from srd.data.loader import BrokenFiles
from srd.device import Precision
from srd.evaluation.accuracy import evaluate
from srd.models.students import open_student


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Batches that are in memory."""
    precision = Precision.choose("auto", device)
    model = open_student(sizes.student, image_size=sizes.image_size).model.to(device).eval()
    batches = [random_batch(sizes, device)] * 2

    def ours() -> None:
        evaluate(model, batches, precision, BrokenFiles(False))

    @torch.no_grad()
    def reference() -> None:
        correct = torch.zeros((), device=device)
        for batch in batches:
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                logits = model(batch.images.to(device, non_blocking=True))
            correct += (logits.argmax(1) == batch.targets.to(device)).sum()
        correct.item()

    times = in_turn({"ours": ours, "reference": reference}, seconds=sizes.seconds, device=device)
    student = open_student(sizes.student, image_size=sizes.image_size)
    small = torch.zeros(2, 3, sizes.image_size, sizes.image_size)
    images = len(batches) * sizes.batch_size
    count = operations(student, small, training=False) / 2 * images
    rate = matrix_rate(device, precision.mixed or precision.dtype)
    yield Line(
        name=f"eval: {sizes.student}",
        ours=times["ours"],
        reference=times["reference"],
        floor=count / rate,
        items=images,
        note="reference: a plain loop; floor: its operations at the matrix rate",
    )
