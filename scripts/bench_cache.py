"""How fast a run is online, recording, replaying, and without a teacher: in turn, in one process.

    python scripts/bench_cache.py --student tiny --teacher regnety_160.deit_in1k --image-size 224

Random weights and random pictures: only the time is real. Prints a table of medians and ratios, and
one line of JSON. A step is what a training does with a batch that is already decoded: the cache's
share of the time, mixup, forward, backward and update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from srd.cache.manifest import FORMAT, Manifest, Recorded, Shapes
from srd.cache.replay import OpenCache, Replay
from srd.method.losses import LOSSES
from srd.models.outputs import Output, of_black_image
from srd.models.students import open_student
from srd.models.timm_models import read
from srd.training.cached_teacher import as_output

WAYS = ("student alone", "online", "recording", "replay")
Step = Callable[[int], None]


class Bench:
    """A student, a teacher and a cache, and a step of each way.

    Args:
        steps: of a recorded epoch; the batches are a few, again and again.
    """

    def __init__(self, asked: Any, folder: Path) -> None:
        torch.manual_seed(0)
        self.device = torch.device(asked.device)
        self.mixed = self.device.type == "cuda"
        size, classes = asked.image_size, 1000
        self.teacher = timm.create_model(asked.teacher, num_classes=classes).eval()
        self.teacher.requires_grad_(False).to(self.device)
        self.student = open_student(
            asked.student, num_classes=classes, image_size=size, reads_features=True
        ).to(self.device)
        seen, own = self.teach_once(size), of_black_image(self.student, size)
        assert seen.features is not None and own.features is not None
        width = seen.features.shape[1]
        self.loss = LOSSES["srd"](own.features.shape[1], width).to(self.device)
        parameters = [*self.student.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5)
        self.images = [
            torch.randn(asked.batch_size, 3, size, size, device=self.device) for _ in range(4)
        ]
        shapes = Shapes(
            fields={"features": (width,), "logits": (classes,)},
            dtype=asked.dtype,
            top_logits=asked.top_logits,
            exact="float32",
            batch_size=asked.batch_size,
            steps=asked.steps,
        )
        manifest = Manifest(FORMAT, Recorded(asked.teacher, "random", True), shapes, {}, {})
        self.cache = OpenCache.at(folder, manifest)

    def teach_once(self, size: int) -> Output:
        """What the teacher says of a black image."""
        return read(self.teacher, torch.zeros(1, 3, size, size, device=self.device))

    @torch.no_grad()
    def teach(self, images: Tensor) -> Output:
        """The teacher, online."""
        return read(self.teacher, images)

    def replay(self) -> Replay:
        """The cache as a run has it."""
        return Replay(
            self.cache, repeat=1, device=self.device, load=lambda: None, tell=lambda line: None
        )

    def step(self, number: int, taught: Callable[[Tensor], Output] | None) -> None:
        """One update."""
        images = self.images[number % len(self.images)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            z_t = taught(images) if taught is not None else None
            z_s = self.student(images)
            loss = z_s.logits.float().logsumexp(dim=1).mean()
            if z_t is not None:
                loss = loss + self.loss(z_s.features, z_t.features)
                loss = loss + (z_t.logits.float().softmax(1) * z_s.logits.float()).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self, way: str, steps: int) -> float:
        """Seconds of a step, the wait for what is still on its way included."""
        replay = None if way in ("student alone", "online") else self.replay()
        started = self.now()
        for number in range(steps):
            self.step(number, self.taught(way, replay, number))
        self.now()
        if replay is not None:
            replay.close()
        return (self.now() - started) / steps

    def taught(
        self, way: str, replay: Replay | None, number: int
    ) -> Callable[[Tensor], Output] | None:
        """The teacher of a way."""
        if way == "student alone":
            return None
        if replay is None:
            return self.teach
        replay.at(number)

        def compute(images: Tensor) -> dict[str, Any]:
            return self.teach(images)._asdict()

        return lambda images: as_output(replay.values(images, lambda: compute(images)), images)

    def now(self) -> float:
        """Seconds, once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(asked: Any) -> dict[str, Any]:
    """Medians over the rounds, and ratios; each round takes every way in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="bench-cache-") as folder:
        bench = Bench(asked, Path(folder))
        for way in WAYS[:2]:
            bench.epoch(way, 2)  # warm
        for _ in range(asked.rounds):
            for way in WAYS:
                if way == "recording":
                    for shard in Path(folder).glob("epoch_*/*"):
                        shard.unlink()
                    bench.cache.shelf.forget()
                seconds[way].append(bench.epoch(way, asked.steps))
        row_bytes = bench.cache.shelf.layout.row_bytes
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "student": asked.student,
        "teacher": asked.teacher,
        "image_size": asked.image_size,
        "batch_size": asked.batch_size,
        "device": asked.device,
        "dtype": asked.dtype,
        "bytes_a_view": row_bytes,
        "seconds_a_step": {way: round(value, 4) for way, value in medians.items()},
        "online_over_student": round(medians["online"] / medians["student alone"], 3),
        "recording_over_online": round(medians["recording"] / medians["online"], 3),
        "replay_over_student": round(medians["replay"] / medians["student alone"], 3),
        "online_over_replay": round(medians["online"] / medians["replay"], 3),
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    images = result["batch_size"]
    lines = ["| way | seconds a step | images a second |", "| --- | --- | --- |"]
    for way, value in result["seconds_a_step"].items():
        lines.append(f"| {way} | {value:.3f} | {images / value:.1f} |")
    ratios = [name for name in result if "_over_" in name]
    return "\n".join(
        [*lines, "", *(f"{name.replace('_', ' ')}: {result[name]}" for name in ratios)]
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="tiny")
    parser.add_argument("--teacher", default="regnety_160.deit_in1k")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "int8"))
    parser.add_argument("--top-logits", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--folder", help="where the cache is written (default: the temporary folder)"
    )
    result = measure(parser.parse_args(arguments))
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
