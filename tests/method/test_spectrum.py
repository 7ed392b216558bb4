"""Spectrum, effective rank and correlation beside values that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from srd.method.spectrum import correlation, effective_rank, singular_values


def test_singular_values_are_those_of_the_matrix() -> None:
    weight = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    gram = np.linalg.eigvalsh(weight.double().numpy().T @ weight.double().numpy())
    assert singular_values(weight) == pytest.approx(np.sqrt(gram[::-1]), rel=1e-9)
    assert singular_values(torch.full((2, 2), math.nan)) == []


@pytest.mark.parametrize(
    ("values", "rank"),
    [([3.0], 1), ([2.0, 2.0, 2.0], 3), ([1.0, 0.0], 1), ([0.0, 0.0], 0), ([0.3, 0.1], 4 / 3**0.75)],
)
def test_effective_rank(values: list[float], rank: float) -> None:
    assert effective_rank(values) == pytest.approx(rank)


def test_correlation_is_pearsons() -> None:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 3, generator=draws), torch.randn(50, 4, generator=draws)
    expected = np.abs(np.corrcoef(x.numpy().T, y.numpy().T)[:3, 3:]).mean()
    assert correlation(x, y) == pytest.approx(expected, rel=1e-6)
    assert correlation(x[:, :1], -2 * x[:, :1] + 7) == pytest.approx(1)
    with_constant = torch.cat([y, torch.full((50, 1), 0.1)], dim=1)
    assert correlation(x, with_constant) == pytest.approx(expected, rel=1e-6)
    assert correlation(x[:1], y[:1]) is None and correlation(x, torch.ones(50, 2)) is None
