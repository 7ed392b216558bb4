"""What these tests compute twice: on the whole batch, and by torchrun on two halves of it.

`torchrun --nproc-per-node 2 two_ranks.py OUT` writes, in OUT, the results of every rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import Tensor, nn

from srd.data.batches import EvalBatches
from srd.data.digits import DigitImages
from srd.data.loader import BrokenFiles, make_loader
from srd.data.views import SeededViews
from srd.device import Precision
from srd.distributed import gradients as distributed_gradients
from srd.distributed import processes, reduce
from srd.distributed.batch_norm import use_global_batch_norm
from srd.distributed.gradients import averaged
from srd.errors import UserError
from srd.evaluation.accuracy import evaluate
from srd.method.losses import LOSSES as LOSSES_BY_NAME
from srd.method.losses import LossSettings, create_loss
from srd.method.simple_recipe import SimpleRecipeLoss
from srd.models.students import open_student
from tests.distributed.messages import Message, Messages

CPU = torch.device("cpu")
BATCH, D_S, D_T = 8, 5, 7
IMAGE = (3, 5, 6)
STUDENTS = ("test_byobnet", "efficientvit_m0")  # batch norms with activations; of vectors too
RIVALS: dict[str, Any] = {name: name for name in ("dkd", "dist", "kd_ls", "fitnet", "crd")}
RIVALS |= {d: {"name": "ablation", "distance": d} for d in ("logsum", "correlation", "l2")}
LOSSES = [("correlation", 4.0), ("elementwise", 4.0), ("correlation", 2.5), ("elementwise", 1.0)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def my_half(batch: Tensor) -> Tensor:
    """This rank's rows; all of them with one process."""
    size = len(batch) // processes.world_size()
    return batch[processes.rank() * size : (processes.rank() + 1) * size].clone()


def gradients(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Gradients as an optimizer sees them. Those of inputs are not averaged, so do it here."""
    assert inputs.grad is not None
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**found, "inputs": inputs.grad / processes.world_size()}


def recipe_loss(match: str, alpha: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    loss = SimpleRecipeLoss(D_S, D_T, match, alpha).double()
    z_s = my_half(random(BATCH, D_S, seed=1)).requires_grad_()
    z_t = my_half(random(BATCH, D_T, seed=2))
    parallel = processes.data_parallel(loss, CPU)
    value = parallel(z_s, z_t)
    value.backward()
    return {"value": value.detach(), **gradients(loss, z_s), **dict(loss.named_buffers())}


def rival(given_settings: Any) -> dict[str, Tensor]:
    """Two steps of a loss by name, of all that it needs."""
    torch.manual_seed(0)
    settings = TypeAdapter(LossSettings).validate_python(given_settings)
    sizes = (D_T, D_T) if LOSSES_BY_NAME[settings.name].reads == "logits" else (D_S, D_T)
    loss = create_loss(settings, student_dim=sizes[0], teacher_dim=sizes[1], train_images=2 * BATCH)
    assert loss is not None
    parallel = processes.data_parallel(loss.double(), CPU) if [*loss.parameters()] else loss
    given = {
        "targets": my_half(random(BATCH, D_T, seed=5).softmax(dim=1)),
        "keys": my_half(torch.stack([torch.zeros(BATCH), torch.arange(BATCH)], dim=1).long()),
    }
    values = []
    for step in range(2):
        loss.zero_grad()
        z_s = my_half(random(BATCH, sizes[0], seed=step)).requires_grad_()
        z_t = my_half(random(BATCH, sizes[1], seed=2 + step))
        value = parallel(z_s, z_t, **{need: given[need] for need in loss.needs})
        value.backward()
        values.append(reduce.reduce_mean(value.detach()))
    return {"values": torch.stack(values), **gradients(loss, z_s), **dict(loss.named_buffers())}


def batch_norm(layer: nn.Module, *shape: int) -> dict[str, Tensor]:
    """A linear map of the channels and a batch norm, two steps in training and one in evaluation.

    Args:
        shape: of one sample: 3 channels, and positions.
    """
    torch.manual_seed(0)
    mix = {1: nn.Linear(3, 4), 2: nn.Conv1d(3, 4, 1), 3: nn.Conv2d(3, 4, 1)}[len(shape)]
    network = use_global_batch_norm(nn.Sequential(mix, layer, nn.ReLU())).double()
    parallel = processes.data_parallel(network, CPU)
    for step in range(2):
        images = my_half(random(BATCH, *shape, seed=step)).requires_grad_()
        out = parallel(images)
        probe = my_half(random(BATCH, 4, *shape[1:], seed=9))
        reduce.global_sum((out * probe).sum()).backward()
    seen = {"out": out.detach(), **gradients(network, images), **dict(network.named_buffers())}
    with torch.no_grad():
        return {**seen, "evaluated": network.eval()(images)}


def student(name: str) -> dict[str, Tensor]:
    """Features, logits, gradients and statistics of a timm model after one step in training."""
    torch.manual_seed(0)
    network = open_student(name, num_classes=5, image_size=64).double()
    use_global_batch_norm(network)
    images = my_half(random(BATCH, 3, 64, 64, seed=1)).requires_grad_()
    parallel = processes.data_parallel(network.train(), CPU)  # averages as long as it lives
    output = parallel(images)
    out = torch.cat([output.features, output.logits], dim=1)
    reduce.global_sum((out * my_half(random(BATCH, out.shape[1], seed=9))).sum()).backward()
    return {"out": out.detach(), **gradients(network, images), **dict(network.named_buffers())}


def unknown_batch_norm() -> str:
    """What is said of a layer with batch statistics that nobody taught to share them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), EvoNorm2dB0(4))
    try:
        use_global_batch_norm(network)
    except UserError as error:
        return str(error)
    return ""


def float32_forward() -> dict[str, Tensor]:
    """Convolutions and batch norms in float32, over values far from zero."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
    )
    network = use_global_batch_norm(network)
    images = my_half(random(BATCH, 3, 16, 16, seed=1)).float() * 3 + 5
    return {"out": network(images).detach(), **dict(network.named_buffers())}


def local_loss() -> dict[str, Tensor]:
    torch.manual_seed(0)
    loss = SimpleRecipeLoss(D_S, D_T, across_ranks=False).double()
    value = loss(my_half(random(BATCH, D_S, seed=1)), my_half(random(BATCH, D_T, seed=2)))
    return {"value": value.detach()}


def accumulated() -> dict[str, Tensor]:
    """Gradients summed over this rank's samples, the last of which averages over ranks."""
    torch.manual_seed(0)
    network = nn.Linear(D_S, D_T).double()
    *rows, last = my_half(random(BATCH, D_S, seed=1))
    for row in rows:
        (network(row).square().sum() * processes.world_size()).backward()
    with averaged(network.parameters()):
        (network(last).square().sum() * processes.world_size()).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def in_buckets() -> dict[str, Tensor]:
    """Two messages of two layers each: the second waits for a gradient that never comes."""
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(D_S, D_S) for _ in range(5)]).double()
    network[1].requires_grad_(False)
    unused, layer = nn.Parameter(random(1, seed=1)), 8 * D_S * (D_S + 1)  # bytes
    parameters = [*network[0].parameters(), unused, *network[1:].parameters()]
    with pytest.MonkeyPatch.context() as patch, Messages() as sent:
        patch.setattr(distributed_gradients, "BUCKET_BYTES", 2 * layer)
        with averaged(parameters):
            network(my_half(random(BATCH, D_S, seed=1))).square().mean().backward()
            early = len(sent)
    assert unused.grad is None
    if processes.world_size() > 1:
        assert early == 1 and sent == [Message("gradients", 2 * layer)] * 2
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def accuracy() -> dict[str, Tensor]:
    def pixels(image: Any) -> Tensor:
        return torch.tensor(list(image.convert("L").tobytes())).float().expand(3, -1)

    def predict(images: Tensor) -> Tensor:
        return images[:, 0] @ random(64, 10, seed=3).float()

    batches = EvalBatches(500, 64, processes.rank(), processes.world_size())
    loader = make_loader(SeededViews(DigitImages("val"), pixels, 0, False), batches, 0, False)
    found = evaluate(predict, loader, Precision.choose("off", CPU), BrokenFiles(False))
    return {name: torch.tensor(value).double() for name, value in found.row().items()}


def results() -> dict[str, dict[str, Tensor]]:
    found = {f"{match} {alpha}": recipe_loss(match, alpha) for match, alpha in LOSSES}
    found |= {f"rival {name}": rival(settings) for name, settings in RIVALS.items()}
    found["affine"] = batch_norm(nn.BatchNorm2d(4), *IMAGE)
    found["plain"] = batch_norm(nn.BatchNorm2d(4, affine=False, momentum=None), *IMAGE)
    found["still"] = batch_norm(nn.BatchNorm2d(4, momentum=0.0), *IMAGE)
    found["no statistics"] = batch_norm(nn.BatchNorm2d(4, track_running_stats=False), *IMAGE)
    found["no statistics"].pop("evaluated")  # of the batch in evaluation too: each rank's own
    found["with activation"] = batch_norm(BatchNormAct2d(4, act_layer=nn.SiLU), *IMAGE)
    found["of vectors"] = batch_norm(nn.BatchNorm1d(4), 3)
    found["of sequences"] = batch_norm(nn.BatchNorm1d(4), 3, 5)
    found |= {name: student(name) for name in STUDENTS}
    found["float32"] = float32_forward()
    found["accumulated"] = accumulated()
    found["in buckets"] = in_buckets()
    found["accuracy"] = accuracy()
    return found


def check_reductions() -> None:
    """What only two processes can show; raises where it is not so."""
    assert processes.world_size() == 2 and processes.is_main() == (processes.rank() == 0)
    mine = torch.tensor([1.0, 10.0]) * (processes.rank() + 1)
    before = mine.clone()
    assert reduce.reduce_sum(mine).tolist() == [3, 30]
    assert reduce.reduce_mean(mine).tolist() == [1.5, 15]
    assert reduce.global_sum(mine).tolist() == [3, 30]
    assert torch.equal(mine, before)
    processes.check_same({"seed": 0})
    with pytest.raises(UserError, match="process 1 has another configuration"):
        processes.check_same({"seed": processes.rank()})


def check_messages() -> None:
    """What docs/distributed.md counts, of a batch norm and of the loss; DDP's gradients come beside."""
    images = my_half(random(BATCH, 4, 5, 6, seed=1)).requires_grad_()
    with Messages() as sent:
        use_global_batch_norm(nn.Sequential(nn.BatchNorm2d(4)).double())(images).sum().backward()
    assert sent == [Message(kind, 2 * 4 * 8) for kind in ("all_gather", "all_reduce")]
    with Messages() as sent:
        recipe_loss("correlation", 4.0)
    moments = 2 * 2 * D_T * 8  # of both sides, means and squares
    assert sent == [
        Message("all_gather", moments), Message("all_reduce", D_T * 8), Message("all_reduce", moments),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined(CPU):
        check_reductions()
        check_messages()
        torch.save(
            {**results(), "local": local_loss(), "unknown": unknown_batch_norm()},
            Path(sys.argv[1]) / f"{processes.rank()}.pth",
        )
