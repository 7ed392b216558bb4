"""Orthonormal projectors: torch's Cayley map, at the price of the narrow side."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from srd.method.orthonormal import orthonormal


@pytest.mark.parametrize("dims", [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_it_is_torchs_cayley_map_and_so_are_its_gradients(dims: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = orthonormal(*dims).double()
    theirs = nn.Linear(*dims, bias=False).double()
    orthogonal(theirs, orthogonal_map="cayley", use_trivialization=False)
    theirs.load_state_dict(ours.state_dict())  # under the same names
    mix = torch.randn(dims[1], dims[0]).double()
    for linear in (ours, theirs):
        (linear.weight * mix).sum().backward()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-13)
    [own], [other] = ours.parameters(), theirs.parameters()
    assert own.grad is not None and other.grad is not None
    torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-12)
