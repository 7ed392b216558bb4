"""A look at the projector while it is trained.

Nothing that is looked at changes: no random number is drawn, no statistic moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.distributed import reduce
from srd.method.spectrum import correlation, effective_rank, singular_values

SAMPLES = 1024  # representations that are kept of a batch, on each process


class ProjectorProbe:
    """Spectrum of a loss's projector, and how its outputs correlate with its inputs.

    Args:
        loss: a representation loss; one without a linear `projector` has no spectrum, and only one
            that can `project` has a correlation without it.
    """

    def __init__(self, loss: nn.Module | None) -> None:
        projector = getattr(loss, "projector", None)
        self.projector = projector if isinstance(projector, nn.Linear) else None
        self.project: Callable[[Tensor], Tensor] | None = getattr(loss, "project", None)
        if self.projector is not None:
            self.project = self._linear
        self.inputs: Tensor | None = None
        if loss is not None and self.project is not None:
            loss.register_forward_pre_hook(self._keep)

    def _linear(self, inputs: Tensor) -> Tensor:
        assert self.projector is not None
        weight, bias = self.projector.weight, self.projector.bias
        return F.linear(inputs, *(p if p is None else p.to(inputs.dtype) for p in (weight, bias)))

    def _keep(self, loss: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Keep some of the student's representations of a training batch.

        Shapes: (B, D_s), tokens (B, N, D_s), or maps (B, D_s, H, W).
        """
        if loss.training and arguments:
            z_s = arguments[0].detach()
            z_s = z_s.flatten(2).transpose(1, 2) if z_s.ndim == 4 else z_s
            self.inputs = z_s.reshape(-1, z_s.shape[-1])[:SAMPLES].clone()

    @torch.no_grad()
    def last_batch(self) -> dict[str, float]:
        """`correlation` of the last training batch, over all processes; {} before the first."""
        if self.project is None or self.inputs is None:
            return {}
        inputs = reduce.gather(self.inputs)
        found = correlation(inputs, self.project(inputs))
        return {} if found is None else {"correlation": found}

    @torch.no_grad()
    def spectrum(self) -> dict[str, Any]:
        """`effective_rank` and all `singular_values`, the largest first."""
        if self.projector is None:
            return {}
        values = singular_values(self.projector.weight)
        if not values:
            return {}
        return {
            "effective_rank": effective_rank(values),
            "singular_values": [float(f"{value:.6g}") for value in values],
        }
