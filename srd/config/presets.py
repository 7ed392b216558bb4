"""Recipes by name: `imagenet` is the paper's, all defaults; `small` is made for the data at hand.

The numbers of `small` are this project's own (docs/results.md measures them): enough updates for a
network to arrive, whatever the number of pictures, and distortions that so many updates can bear.
"""

from __future__ import annotations

from typing import Any

FEW = 20_000  # training images, below which the paper's recipe is the wrong one
UPDATES = {"cuda": 8000, "cpu": 1000}  # of a whole run, about
MOST_EPOCHS = {"cuda": 300, "cpu": 100}
LEAST_EPOCHS = 20
MOST_IMAGES = {"cuda": 256, "cpu": 64}  # of a batch
LEAST_IMAGES = 32  # of a batch, for the sake of its statistics
PER_EPOCH = 25  # updates, about, until a batch has MOST_IMAGES
RATE, FINE_RATE = 1e-3, 2e-4  # for 64 images, from random and from learned weights
NORMED = 4  # times longer steps, which a network of batch norms bears
MEASURED = 20  # times in a run, about
WARMUP = 20 / 300  # of the epochs: the paper's share


def small(
    images: int,
    device: str,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    from_weights: bool = False,
    batch_norms: bool = False,
) -> dict[str, Any]:
    """Settings for a few pictures, as a layer of a configuration.

    Args:
        images: to train on.
        device: `cuda` or `cpu`, which gets fewer epochs and smaller batches.
        batch_size, epochs: what is settled already.
        from_weights: whether the training starts from weights, and so needs smaller steps.
        batch_norms: whether the network has no other norms, and so bears longer steps.
    """
    batch_size = batch_size or _batch_size(images, MOST_IMAGES[device])
    if epochs is None:
        enough = round(UPDATES[device] * batch_size / images)
        epochs = min(max(enough, LEAST_EPOCHS), MOST_EPOCHS[device])
    # AdamW's steps are of one length, so the rate grows with the root of the batch
    rate = (FINE_RATE if from_weights else RATE) * (NORMED if batch_norms else 1)
    rate = float(f"{rate * (batch_size / 64) ** 0.5:.2g}")
    between = max(1, epochs // MEASURED)
    return {
        "augment": augmentation(images),
        "optim": {
            "lr": rate,
            "lr_batch": batch_size,
            "warmup_epochs": warmup(epochs),
            "warmup_lr": float(f"{rate / 1000:.2g}"),
            "min_lr": float(f"{rate / 100:.2g}"),
        },
        "train": {
            "batch_size": batch_size,
            "epochs": epochs,
            "evaluate_every": between,
            "save_every": between,
        },
    }


def warmup(epochs: int) -> float:
    """The paper's share of so many epochs."""
    return round(WARMUP * epochs, 2)


def _batch_size(images: int, most: int) -> int:
    """A power of two, of which there are about PER_EPOCH in an epoch; even for the fewest images."""
    size = LEAST_IMAGES
    while size < most and 1.5 * size * PER_EPOCH <= images:
        size *= 2
    return min(size, max(2, images // 4 * 2))


def augmentation(images: int) -> dict[str, Any]:
    """Distortions for so many pictures: the paper's are for a million, and 300 epochs of them."""
    if images < 5000:
        return {
            "crop_scale": [0.35, 1.0],
            "rand_augment": "rand-m5-mstd0.5-inc1",
            "erase": 0.0,
            "mixup": 0.2,
            "cutmix": 0.0,
        }
    return {
        "crop_scale": [0.2, 1.0],
        "rand_augment": "rand-m7-mstd0.5-inc1",
        "erase": 0.1,
        "mixup": 0.4,
        "cutmix": 0.5,
    }
