"""Pictures to transform."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0, grain: int = 20) -> Image.Image:
    """Smooth colours with noise on them, of so many steps of 255 each way."""
    draw = np.random.RandomState(seed)
    coarse = draw.randint(0, 256, (5, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC), np.int16)
    noisy = smooth + draw.randint(-grain, grain, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
