"""The teacher cache: a run that records and one that replays, beside those without cache or teacher."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from srd.bench.step import (
    CLASSES,
    Step,
    configuration,
    our_step,
    our_task,
    random_batch,
    random_teacher,
    stepping,
)
from srd.bench.timing import Line, Sizes, in_turn
from srd.cache.manifest import FORMAT, Manifest, Recorded, Shapes
from srd.cache.replay import OpenCache, Replay
from srd.device import Precision
from srd.models.teacher import LoadedTeacher
from srd.training.cached_teacher import CachedTeacher
from srd.training.task import DistillationTask


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Epochs of the same batch in memory; a cached one ends when all is written and closed."""
    precision = Precision.choose("auto", device)
    config, batch = configuration(sizes, device), random_batch(sizes, device)
    teacher = random_teacher(sizes, precision)
    task = our_task(config, teacher, precision)
    step, alone = stepping(task, config, precision, batch), our_step(config, None, precision, batch)
    steps = sizes.steps
    shapes = Shapes(
        fields={"features": (teacher.width("features", sizes.image_size),), "logits": (CLASSES,)},
        dtype="float16",
        top_logits=None,
        exact="float32",
        batch_size=sizes.batch_size,
        steps=steps,
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name) / "cache"

        def online() -> None:
            task.hold(teacher)
            for _ in range(steps):
                step()

        def replay() -> None:
            cached(task, step, teacher, open_cache(folder, teacher, shapes), device)

        def recording() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            replay()

        def student() -> None:
            for _ in range(steps):
                alone()

        calls = {"alone": student, "online": online, "recording": recording, "replay": replay}
        times = in_turn(calls, seconds=2 * sizes.seconds, device=device, warm_up=False)
        row_bytes = open_cache(folder, teacher, shapes).shelf.layout.row_bytes
    for ours, reference, note in (
        ("online", "alone", "without a cache; reference: without a teacher"),
        ("recording", "online", "reference: online"),
        ("replay", "alone", f"{row_bytes:,} bytes a view; reference: without a teacher"),
    ):
        yield Line(
            name=f"cache, {ours}: {sizes.student}, taught by {sizes.teacher}",
            ours=times[ours],
            reference=times[reference],
            items=steps * sizes.batch_size,
            note=f"{note}; {steps} steps a round",
        )


def open_cache(folder: Path, teacher: LoadedTeacher, shapes: Shapes) -> OpenCache:
    """The cache in a folder, looked into anew."""
    about = Recorded(teacher.name, "random", True)
    return OpenCache.at(folder, Manifest(FORMAT, about, shapes, {}, {}))


def cached(
    task: DistillationTask,
    step: Step,
    teacher: LoadedTeacher,
    cache: OpenCache,
    device: torch.device,
) -> None:
    """An epoch whose teacher is behind a cache, as a run has it."""
    replay = Replay(cache, repeat=None, device=device, load=lambda: None, tell=print)
    taught = CachedTeacher(cache, teacher, lambda: teacher, replay)
    task.hold(taught)
    try:
        for place in range(cache.shelf.layout.steps):
            taught.at(place)
            step()
    finally:
        replay.close()
