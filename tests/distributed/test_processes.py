"""Several processes compute what one computes on the whole batch; one process needs nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from srd.distributed import processes, reduce
from srd.distributed.gradients import averaged
from srd.errors import UserError

CPU = torch.device("cpu")
Results = dict[str, dict[str, Tensor]]


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
    with averaged(network.parameters()):
        pass
    assert all(torch.equal(a, p.grad) for a, p in zip(before, network.parameters(), strict=True))


def test_alone_no_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.joined(CPU):
        assert not torch.distributed.is_initialized()


def test_processes_that_do_not_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                 "SRD_DIST_TIMEOUT": "0.1"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=r"2 processes were to meet at 127\.0\.0\.1:1"),
        processes.joined(CPU),
    ):
        pass


# Two processes


@pytest.mark.parametrize(
    "case", ["correlation 4.0", "elementwise 4.0", "correlation 2.5", "elementwise 1.0"]
)
def test_the_loss_of_two_halves_is_the_loss_of_the_batch(
    whole: Results, assert_equal: Callable[..., None], case: str
) -> None:
    assert {"value", "inputs", "embed.weight", "embed.bias"} <= set(whole[case])
    assert whole[case]["embed.weight"].abs().max() > 1e-3
    assert_equal(case)


RIVALS = [
    f"rival {name}"
    for name in ("dkd", "dist", "kd_ls", "fitnet", "crd", "logsum", "correlation", "l2")
]


@pytest.mark.parametrize("case", ["accumulated", "in buckets", "accuracy", *RIVALS])
def test_two_processes_together_are_one(assert_equal: Callable[..., None], case: str) -> None:
    assert_equal(case)


def test_statistics_of_each_process_when_asked(
    halves: tuple[Results, Results], two_ranks: ModuleType
) -> None:
    z_s = two_ranks.random(8, 5, seed=1)
    z_t = two_ranks.random(8, 7, seed=2)
    for rank, results in enumerate(halves):
        torch.manual_seed(0)
        loss = two_ranks.SimpleRecipeLoss(5, 7).double()
        mine = slice(4 * rank, 4 * rank + 4)
        expected = loss(z_s[mine], z_t[mine]).detach()
        torch.testing.assert_close(results["local"]["value"], expected, rtol=0, atol=1e-10)
    assert halves[0]["local"]["value"] != halves[1]["local"]["value"]
