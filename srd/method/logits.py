"""Losses on logits: cross-entropy, and the KL divergence to a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) on logits, times T^2, averaged over the batch, in float32 or better.

    Shapes: (B, C), (B, C) to a scalar. Hinton et al. 2015; T = 1 in both released recipes.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(torch.float32, student_logits.dtype)
        log_p = F.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
        log_q = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=-1)
        return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy averaged over the batch, in float32 or better.

    Shapes: logits (B, C); targets (B,) class indices or (B, C) mixed probabilities. `smoothing`
    applies to class indices only: mixed targets were smoothed when they were mixed.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
        if targets.is_floating_point():
            return F.cross_entropy(logits, targets.to(logits.dtype))
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
