"""Counts what processes send each other in a step.

`torchrun --nproc-per-node 2 tests/distributed/messages.py` prints it for the networks of the paper: small
pictures and a teacher that only draws numbers, since the messages depend on neither.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from srd.config.fields import Distill
from srd.device import Precision
from srd.distributed import processes, reduce
from srd.distributed.batch_norm import use_global_batch_norm
from srd.method.simple_recipe import SimpleRecipeLoss
from srd.models.outputs import Output
from srd.models.students import open_student
from srd.training.task import DistillationTask

CPU = torch.device("cpu")
SIDE, SHARE, CLASSES, TEACHER_DIM = 32, 4, 1000, 3024  # RegNetY-160's width
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "all_gather_object", "barrier")
Losses = dict[str, Tensor]


class Message(NamedTuple):
    kind: str  # "gradients" are sent without waiting, everything else is waited for
    size: int  # bytes


class Messages(list[Message]):
    """The messages that this process sends inside, those of DDP too where `watch` was called."""

    def __enter__(self) -> Self:
        self.originals = {name: getattr(dist, name) for name in COLLECTIVES}
        for name, send in self.originals.items():
            setattr(dist, name, self._counting(name, send))
        return self

    def __exit__(self, *_: object) -> None:
        for name, send in self.originals.items():
            setattr(dist, name, send)

    def _counting(self, name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **more: Any) -> Any:
            sent = next((x for x in given if isinstance(x, Tensor)), torch.empty(0))
            kind = "gradients" if more.get("async_op") else name
            self.append(Message(kind, sent.numel() * sent.element_size()))
            return send(*given, **more)

        return counting


def watch(module: object) -> None:
    """Let DDP send its buckets where they are counted."""
    if isinstance(module, DistributedDataParallel):
        module.register_comm_hook(dist.group.WORLD, allreduce_hook)


def deit(name: str, micro_batch: int | None = None) -> Messages:
    """Of a third step, after which DDP's buckets are settled."""
    torch.manual_seed(0)
    student = open_student(name, num_classes=CLASSES, image_size=SIDE)
    use_global_batch_norm(student.model)
    dim = student.model.head.in_features
    task = DistillationTask(
        student.train(), SimpleRecipeLoss.deit(dim, TEACHER_DIM), distill=Distill(),
        teach=lambda images: Output(*(torch.randn(len(images), n) for n in (TEACHER_DIM, CLASSES))),
        smoothing=0.1, precision=Precision(CPU),
    )  # fmt: skip
    task.share_out(micro_batch)
    for module in (task.call_student, task.call_loss):
        watch(module)
    batch = torch.randn(SHARE, 3, SIDE, SIDE), torch.randint(CLASSES, (SHARE,))
    return third(lambda: task.losses(batch, 0), Tensor.backward, task)


def resnet() -> Messages:
    """A ResNet-18 in torchdistill's box; its teacher as wide as a ResNet-34 is."""
    from resnet.bench import _task
    from srd.bench.timing import Sizes

    sizes = Sizes(seconds=0, image_size=SIDE, batch_size=SHARE, resnets=("resnet18", "resnet18"))
    with tempfile.TemporaryDirectory() as folder:
        task, _ = _task(Path(folder), sizes, CPU, compiled=None)
    batch = torch.randn(SHARE, 3, SIDE, SIDE), torch.randint(CLASSES, (SHARE,)), {}
    return third(lambda: task.losses(batch, 0), task.backward, nn.ParameterList(task.parameters))


def third(
    losses: Callable[[], Losses], backward: Callable[[Tensor], None], trained: nn.Module
) -> Messages:
    """What the loop sends, without its update; the gradients must be all there are."""
    for _ in range(3):
        trained.zero_grad()
        with Messages() as counted:
            named = losses()
            reduce.reduce_mean(torch.stack([*named.values(), named["loss"]]).detach())
            backward(named["loss"])
    sent = sum(message.size for message in counted if message.kind == "gradients")
    assert sent == sum(4 * p.numel() for p in trained.parameters() if p.grad is not None)
    return counted


def table(counted: Messages) -> str:
    """Messages by kind and size."""
    waited = Counter(message for message in counted if message.kind != "gradients")
    lines = [f"  {n:4} {kind} of {size:,} bytes" for (kind, size), n in sorted(waited.items())]
    sizes = [message.size for message in counted if message.kind == "gradients"]
    total = sum(size * n for (_, size), n in waited.items())
    lines.append(f"  {sum(waited.values())} that are waited for, {total:,} bytes")
    return "\n".join([*lines, f"  gradients: {len(sizes)} of {sum(sizes):,} bytes: {sizes}"])


def show() -> None:
    """Every table, once."""
    counts: dict[str, Callable[[], Messages]] = {
        "tiny": lambda: deit("tiny"),
        "small": lambda: deit("small"),
        "tiny, two micro-batches": lambda: deit("tiny", SHARE // 2),
        "resnet18": resnet,
    }
    for name, count in counts.items():
        counted = count()
        if processes.is_main():
            print(f"{name}, {SIDE} px\n{table(counted)}", flush=True)


if __name__ == "__main__":
    with processes.joined(CPU):
        show()
