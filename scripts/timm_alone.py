"""The yardstick of docs/results.md: a timm model trained with timm's own loader, mixup, optimizer and
schedule, on a folder with `train/` and `val/`. No teacher, and nothing of this project.

    python scripts/timm_alone.py my_data mobilenetv3_small_100 --image-size 48 --epochs 100
"""

from __future__ import annotations

import argparse
import time

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import accuracy


def train(flags: argparse.Namespace) -> float:
    """Top-1 accuracy after the last epoch, in percent."""
    torch.manual_seed(flags.seed)
    data = {name: create_dataset("", f"{flags.folder}/{name}") for name in ("train", "val")}
    classes = len(data["train"].reader.class_to_idx)
    size = (3, flags.image_size, flags.image_size)
    shared = {"input_size": size, "num_workers": flags.workers, "use_prefetcher": False}
    loader = create_loader(
        data["train"], batch_size=flags.batch_size, is_training=True, scale=(0.35, 1.0),
        auto_augment="rand-m5-mstd0.5-inc1", interpolation="bicubic", **shared,
    )  # fmt: skip
    val = create_loader(data["val"], batch_size=64, crop_pct=0.875, **shared)
    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=classes)
    model, loss = timm.create_model(flags.model, num_classes=classes), SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(model, "adamw", lr=flags.lr, weight_decay=0.05)
    steps = len(loader)
    schedule = CosineLRScheduler(
        optimizer, flags.epochs * steps, lr_min=flags.lr / 100,
        warmup_t=flags.epochs * steps // 15, warmup_lr_init=flags.lr / 1000, t_in_epochs=False,
    )  # fmt: skip
    updates = 0
    for _ in range(flags.epochs):
        model.train()
        for images, targets in loader:
            schedule.step_update(updates)
            optimizer.zero_grad()
            mixed, soft = mixup(images, targets)
            loss(model(mixed), soft).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 15)
            optimizer.step()
            updates += 1
    model.eval()
    with torch.inference_mode():
        scores = [(len(y), accuracy(model(x), y)[0].item()) for x, y in val]
    return sum(n * score for n, score in scores) / sum(n for n, _ in scores)


def make_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("model")
    for name, value in {
        "image-size": 224, "batch-size": 32, "epochs": 100, "lr": 2.8e-3, "seed": 0, "workers": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser


def main() -> None:
    flags = make_parser().parse_args()
    started = time.perf_counter()
    score = train(flags)
    print(f"acc1 {score:.2f} in {time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
