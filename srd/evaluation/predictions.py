"""What a network says of each validation image, taken down while its accuracy is measured."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srd.distributed import reduce
from srd.run.predictions import Told

MOST_IMAGES = 100_000  # of which predictions are kept; of more, every second, third, ...
THUMBNAIL = 128  # pixels of the longer side
SMALL = 48  # up to here, a picture is kept pixel for pixel


class Recorder:
    """Collects predictions by image, on any number of processes.

    Args:
        images: of the data set.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        # a row each for: seen, target, class, probability
        self.table = torch.zeros(4, images, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, images: Tensor, targets: Tensor, logits: Tensor) -> None:
        """A batch, on any device: positions (B,), class numbers (B,), logits (B, C)."""
        probabilities, classes = logits.double().softmax(dim=1).max(dim=1)
        seen = torch.ones_like(probabilities)
        rows = [row.to(self.table) for row in (seen, targets, classes, probabilities)]
        self.table[:, images.to(self.table.device)] = torch.stack(rows)

    def told(self) -> Told:
        """What was collected, of all processes; each has to ask."""
        seen, targets, classes, probabilities = reduce.reduce_sum(self.table).cpu().numpy()
        every = -(-len(seen) // MOST_IMAGES)
        images = np.flatnonzero(seen)
        images = images[images % every == 0]
        return Told(
            images=images,
            targets=targets[images].astype(np.int64),
            classes=classes[images].astype(np.int64),
            probabilities=np.nan_to_num(probabilities[images]).clip(0, 1),
        )


def thumbnail(load: Callable[[int], Image.Image], index: int) -> bytes | None:
    """A small JPEG of an image (a PNG of one that is small); None where it cannot be read."""
    try:
        image = load(index).convert("RGB")
        small = max(image.size) <= SMALL
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    except Exception:  # Pillow's, a data set's: no common class; a report can do without
        return None
    return file.getvalue()
