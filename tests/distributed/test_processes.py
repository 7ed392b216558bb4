"""Several processes compute what one computes on the whole batch; one process needs nothing."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srd.distributed import batch_norm, processes, reduce
from srd.errors import UserError

CPU = torch.device("cpu")
Results = dict[str, dict[str, Tensor]]


def load_two_ranks() -> ModuleType:
    path = Path(__file__).with_name("two_ranks.py")
    spec = importlib.util.spec_from_file_location("two_ranks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TWO_RANKS = load_two_ranks()


# One process


def test_alone_there_is_one_process() -> None:
    assert (processes.world_size(), processes.rank(), processes.is_main()) == (1, 0, True)
    processes.barrier()
    processes.check_same({"seed": 0})


def test_alone_reductions_change_nothing() -> None:
    x = torch.randn(3, requires_grad=True)
    for reduction in (reduce.global_sum, reduce.reduce_mean, reduce.reduce_sum):
        assert reduction(x) is x
    network = nn.Linear(2, 1)
    assert processes.data_parallel(network, CPU) is network
    network(torch.ones(1, 2)).sum().backward()
    before = [p.grad.clone() for p in network.parameters()]
    reduce.average_gradients(list(network.parameters()))
    assert all(torch.equal(a, p.grad) for a, p in zip(before, network.parameters(), strict=True))


def test_alone_no_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.processes(CPU):
        assert not torch.distributed.is_initialized()


def test_processes_that_do_not_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                 "SRD_DIST_TIMEOUT": "0.1"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=r"2 processes were to meet at 127\.0\.0\.1:1"),
        processes.processes(CPU),
    ):
        pass


SETTINGS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"momentum": None, "eps": 0.1},
    {"momentum": 0.0},
    {"track_running_stats": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_alone_global_batch_norm_is_batch_norm(settings: dict[str, Any]) -> None:
    ours, torchs = batch_norm.GlobalBatchNorm2d(4, **settings), nn.BatchNorm2d(4, **settings)
    assert isinstance(ours, nn.BatchNorm2d)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for _ in range(2):
        x = torch.randn(3, 4, 5, 6) * 2 + 1
        torch.testing.assert_close(ours(x), torchs(x))
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def nested_network() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1, momentum=0.3))
    return nn.ModuleDict({"stem": block, "norm": nn.BatchNorm2d(4), "head": nn.BatchNorm1d(4)})


def test_replaced_batch_norms_share_their_tensors() -> None:
    network = nested_network()
    network["norm"].eval()
    before = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert batch_norm.use_global_batch_norm(network) is network
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    kinds = [type(network["stem"][1]), type(network["norm"]), type(network["head"])]
    assert kinds == [batch_norm.GlobalBatchNorm2d, batch_norm.GlobalBatchNorm2d, nn.BatchNorm1d]
    assert (network["stem"][1].eps, network["stem"][1].momentum) == (0.1, 0.3)
    assert network["stem"][1].training and not network["norm"].training


def test_replaced_batch_norms_compute_the_same() -> None:
    plain = nested_network()["stem"]
    ours = batch_norm.use_global_batch_norm(copy.deepcopy(plain))
    x = torch.randn(3, 3, 5, 6)
    torch.testing.assert_close(ours(x), plain(x))
    for mine, theirs in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


# Two processes


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """The results of two processes, started by torchrun, that met over gloo."""
    out = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(Path(__file__).with_name("two_ranks.py")), str(out)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(out / "0.pth"), torch.load(out / "1.pth")


@pytest.fixture(scope="module")
def whole() -> Results:
    return TWO_RANKS.results()


SPLIT = {"inputs", "out", "evaluated"}  # one row for each sample; everything else is shared


def assert_equal(halves: tuple[Results, Results], whole: Results, case: str) -> None:
    first, second = halves[0][case], halves[1][case]
    assert set(first) == set(second) == set(whole[case])
    for name, expected in whole[case].items():
        if name in SPLIT:
            found = torch.cat([first[name], second[name]])
        else:
            found = first[name]
            torch.testing.assert_close(second[name], found, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=f"{case}: {name}")


@pytest.mark.parametrize("match, alpha", TWO_RANKS.LOSSES)
def test_the_loss_of_two_halves_is_the_loss_of_the_batch(
    halves: tuple[Results, Results], whole: Results, match: str, alpha: float
) -> None:
    case = f"{match} {alpha}"
    assert {"value", "inputs", "embed.weight", "embed.bias"} <= set(whole[case])
    assert whole[case]["embed.weight"].abs().max() > 1e-3
    assert_equal(halves, whole, case)


@pytest.mark.parametrize("case", ["affine", "plain", "still", "no statistics"])
def test_the_batch_norm_of_two_halves_is_that_of_the_batch(
    halves: tuple[Results, Results], whole: Results, case: str
) -> None:
    assert whole[case]["inputs"].abs().max() > 1e-3
    assert_equal(halves, whole, case)


def test_in_float32_two_halves_compute_the_same_bits(
    halves: tuple[Results, Results], whole: Results
) -> None:
    first, second = halves[0]["float32"], halves[1]["float32"]
    for name, expected in whole["float32"].items():
        found = torch.cat([first[name], second[name]]) if name == "out" else first[name]
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("case", ["accumulated", "accuracy"])
def test_two_processes_together_are_one(
    halves: tuple[Results, Results], whole: Results, case: str
) -> None:
    assert_equal(halves, whole, case)


def test_statistics_of_each_process_when_asked(halves: tuple[Results, Results]) -> None:
    z_s = TWO_RANKS.random(8, 5, seed=1)
    z_t = TWO_RANKS.random(8, 7, seed=2)
    for rank, found in enumerate(halves):
        torch.manual_seed(0)
        loss = TWO_RANKS.SimpleRecipeLoss(5, 7).double()
        mine = slice(4 * rank, 4 * rank + 4)
        expected = loss(z_s[mine], z_t[mine]).detach()
        torch.testing.assert_close(found["local"]["value"], expected, rtol=0, atol=1e-10)
    assert halves[0]["local"]["value"] != halves[1]["local"]["value"]
