"""The effective rank, where one knows it."""

from __future__ import annotations

import pytest
import torch

from srd.method.spectrum import effective_rank


def test_equal_singular_values_all_count() -> None:
    orthonormal = torch.linalg.qr(torch.randn(9, 4).double()).Q
    assert effective_rank(3 * orthonormal) == pytest.approx(4)


def test_a_single_direction_is_one() -> None:
    assert effective_rank(torch.outer(torch.ones(5), torch.arange(1.0, 4))) == pytest.approx(1)


def test_between_them_it_is_the_entropys() -> None:
    # shares 3/4 and 1/4
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.754765, rel=1e-5)
