"""What a network says of images: features, logits, tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TeacherOutput(NamedTuple):
    """What a student learns from: features (B, D_t), globally averaged, and logits (B, C)."""

    features: Tensor
    logits: Tensor
