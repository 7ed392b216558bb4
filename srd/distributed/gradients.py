"""Gradients averaged over processes, while the backward pass that makes them goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from srd.distributed.processes import world_size

BUCKET_BYTES = 8 << 20  # after which a message is sent: nothing hides the last one


@contextmanager
def averaged(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Average, over all processes, what the one backward pass inside leaves in `.grad`.

    It asks nothing of the module that computes the loss, where torch's DDP wants to be that module.
    What a message holds depends on the parameters alone (DDP groups them anew after its first step):
    a run that goes on adds in the order in which it always did. A parameter without a gradient is
    left out; it must be the same ones on every process.
    """
    if world_size() == 1:
        yield
        return
    buckets = _Buckets(list(parameters))
    try:
        yield
    finally:
        buckets.let_go()
    buckets.finish()


class _Buckets:
    """Sums of gradients that are under way; the last parameters first, as a backward pass meets them."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.groups = _groups(parameters)
        self.place: dict[Tensor, int] = {p: n for n, group in enumerate(self.groups) for p in group}
        self.missing = [len(group) for group in self.groups]
        self.sums: list[tuple[dist.Work | None, Tensor, list[Tensor]]] = []
        self.hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self.place]

    def _arrived(self, parameter: Tensor) -> None:
        number = self.place[parameter]
        self.missing[number] -= 1
        if self.missing[number] < 0:  # in a reentrant checkpoint, say: it was sent too early
            raise RuntimeError("a parameter got its gradient in two parts: its average is wrong")
        # In order, whoever is ready first: every process must send the same message next.
        while len(self.sums) < len(self.groups) and not self.missing[len(self.sums)]:
            self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Send the next bucket."""
        grads = [p.grad for p in self.groups[len(self.sums)] if p.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads]) if grads else torch.empty(0)
        self.sums.append((dist.all_reduce(flat, async_op=True) if grads else None, flat, grads))

    def let_go(self) -> None:
        """Hear no more of the parameters."""
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def finish(self) -> None:
        """Send what waits for a gradient that never came; then put all averages in their places."""
        while len(self.sums) < len(self.groups):
            self._start()
        for work, flat, grads in self.sums:
            if work is not None:
                work.wait()
            flat /= world_size()
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))


def _groups(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters that learn, from the last, in groups of one type that fill a message."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        if not parameter.requires_grad:
            continue
        if not groups or size >= BUCKET_BYTES or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return groups
