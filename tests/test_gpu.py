"""What a GPU computes beside what the CPU computes, and what only a GPU does: one file, quickly run.

pytest -m gpu
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as spawning
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from resnet.main import run as run_resnet
from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.digits import DigitImages
from srd.data.finish import leave_unfinished
from srd.data.loader import collate, to_device
from srd.data.views import SeededViews
from srd.device import on_device
from srd.distributed.batch_norm import use_global_batch_norm
from srd.errors import EXIT_FAILED, EXIT_SIGTERM, exit_code
from srd.method.losses import LOSSES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("narrow"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROCESSES = 2
Runner = Callable[..., Any]


@pytest.fixture
def trained(tmp_path: Path, recipe: Path, deit: Any, open_run: Any) -> Runner:
    """`trained(name, *flags)` trains a student on the digits, on the GPU, and opens its run."""

    def train(name: str, *flags: str, code: int = 0, device: str = "cuda") -> Any:
        done = deit(
            "--train_student", f"--config={recipe}", f"--output={tmp_path}", f"--name={name}",
            f"--device={device}", *flags,
        )  # fmt: skip
        assert done.code == code, done.err
        return open_run(tmp_path / name)

    return train


def losses(run: Any) -> Tensor:
    """All numbers of all steps: (steps, numbers)."""
    hidden = ("kind", "time", "lr")
    rows = [{k: v for k, v in row.items() if k not in hidden} for row in run.rows("step")]
    return torch.tensor([[float(v) for v in row.values()] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_that_of_the_cpu_in_double_precision(trained: Runner, loss: str) -> None:
    flags = ("--amp=fp64", f"--distillation={loss}", "--epochs=1")
    here, there = (trained(d, *flags, device=d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(losses(there), losses(here), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_mixed_precision_trains_as_double_precision_does(trained: Runner, amp: str) -> None:
    exact, mixed = trained("exact", "--amp=fp64"), trained("mixed", f"--amp={amp}")
    torch.testing.assert_close(losses(mixed)[:, :3], losses(exact)[:, :3], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    trained: Runner, strike: Any, amp: str
) -> None:
    flags = ("--set=deterministic=true", f"--amp={amp}", "--set=train.ema_decay=0.9")
    whole = trained("whole", *flags)
    strike(lambda: os.kill(os.getpid(), signal.SIGTERM), 3)
    stopped = trained("parts", *flags, code=EXIT_SIGTERM)
    assert 3 < stopped.state()["position"]["updates"] < 7  # a GPU is told a step later
    trained("parts", *flags).assert_same(whole)


def test_a_cache_replays_what_was_recorded(trained: Runner, tmp_path: Path) -> None:
    flags = (f"--teacher-cache={tmp_path / 'cache'}", "--set=deterministic=true")
    recorded = trained("recorded", *flags)
    assert list(tmp_path.glob("cache/**/steps_*.safetensors"))
    replayed = trained("replayed", *flags)
    assert torch.equal(losses(replayed), losses(recorded))


def test_compiled_networks_compute_what_they_do_uncompiled(trained: Runner) -> None:
    plain, compiled = (
        trained("plain", "--amp=off"),
        trained("compiled", "--amp=off", "--compile"),
    )
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=2e-3, atol=2e-3)


def test_a_loss_that_is_not_finite_ends_a_run_before_it_is_saved(trained: Runner) -> None:
    run = trained(
        "diverges", "--amp=off", "--lr=1e9", "--set=optim.warmup_epochs=0", code=EXIT_FAILED
    )
    assert not list(run.checkpoints.glob("*.pth")) and len(run.rows("step")) < 6


def test_the_resnet_half_trains(tmp_path: Path) -> None:
    pytest.importorskip("torchdistill")
    from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, OURS, OURS_LOSS, PAIR, TEST

    models = PAIR.replace(", src_ckpt: {teacher}", "").format(folder=tmp_path)
    text = DATA + models + "\ntrain:" + LOADERS + OURS + CRITERION + CE + OURS_LOSS + TEST
    (tmp_path / "a.yaml").write_text(
        text.replace("run: {", "run: {amp: auto, channels_last: true, compile: true, ")
    )
    arguments = [
        "--config",
        str(tmp_path / "a.yaml"),
        "--output",
        str(tmp_path),
        "--device",
        "cuda",
    ]
    assert exit_code(lambda: run_resnet(arguments)) == 0


def test_copies_by_a_stream_of_their_own_are_whole() -> None:
    device, busy = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    total, expected = torch.zeros((), dtype=torch.int64, device=device), 0
    for number in range(50):
        images = torch.full((64, 3, 64, 64), number, dtype=torch.uint8).pin_memory()
        busy = (busy @ busy).clamp(-1, 1)
        total += on_device(images, device).sum()
        del images  # its memory may be taken again only after the copy
        expected += number * 64 * 3 * 64 * 64
    assert total.item() == expected


def test_a_batch_is_finished_to_the_bits_of_the_cpu() -> None:
    transform, finish = leave_unfinished(train_transform(Augment(erase=0.5), Data(), 24))
    views = SeededViews(DigitImages("train"), transform, 0, True)
    batch = collate([views[0, index] for index in range(16)], finish)
    here, there = (
        to_device(batch, torch.device(kind), torch.float32)[0] for kind in ("cpu", "cuda")
    )
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(here, there.cpu())


def norms() -> nn.Module:
    torch.manual_seed(0)
    momentary = nn.BatchNorm2d(6, momentum=None, affine=False)
    return nn.Sequential(nn.BatchNorm2d(6), momentary, BatchNormAct2d(6, act_layer=nn.SiLU))


def passed(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and statistics of a training step, on the CPU."""
    x = x.detach().cuda().requires_grad_()
    out = network.cuda().train()(x)
    out.cos().sum().backward()
    grads = [p.grad for p in network.parameters()]
    return [t.detach().cpu() for t in (out, x.grad, *grads, *network.buffers())]


def one_share(rank: int, x: Tensor, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    result = passed(use_global_batch_norm(norms().double()), x.chunk(PROCESSES)[rank])
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_the_statistics_of_a_batch(tmp_path: Path) -> None:
    x = torch.randn(8, 6, 5, 7, dtype=torch.float64) * 3 + 1
    whole = passed(copy.deepcopy(norms()).double(), x)
    spawning.spawn(one_share, (x, str(tmp_path)), PROCESSES)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    for number, expected in enumerate(whole):
        parts = [share[number] for share in shares]
        if number < 2:  # output, and gradient of the input
            together = torch.cat(parts)
        elif number < 2 + len(list(norms().parameters())):  # gradients, summed over the shares
            together = sum(parts)
        else:
            together = parts[0]
        torch.testing.assert_close(together, expected, msg=f"tensor {number}")
