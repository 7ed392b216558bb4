"""How far networks move with their images: known ones, and NumPy's numbers of an unknown one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from srd.evaluation.shifts import shift_error
from srd.models.outputs import Output

IMAGES = [
    torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
]


class Network(nn.Module):
    """A map of 4 x 4 positions, weighted by position where it is told to."""

    def __init__(self, moves: bool, padding: str = "circular") -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 4, stride=4)
        self.mixed = nn.Conv2d(8, 8, 3, padding=1, padding_mode=padding)
        self.places = torch.ones(4, 4) if moves else torch.arange(16.0).reshape(4, 4)

    def forward(self, images: Tensor) -> Output:
        maps = self.mixed(self.maps(images)) * self.places
        features = maps.mean(dim=(2, 3))
        return Output(features, features[:, :2], maps=maps)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_an_equivariant_network_has_none() -> None:
    found = shift_error(Network(moves=True), IMAGES)
    assert found.features == pytest.approx(0, abs=1e-6) and found.same_class == 100


@pytest.mark.parametrize("network", [Network(moves=False), Network(moves=True, padding="zeros")])
def test_the_number_is_the_formulas(network: Network) -> None:
    found = shift_error(network, IMAGES)
    errors, same = [], []
    for images in IMAGES:
        for axis in (2, 3):
            rolled = torch.from_numpy(np.roll(images.numpy(), 4, axis))
            with torch.no_grad():
                plain, moved = network(images), network(rolled)
            there = np.roll(plain.maps.double().numpy(), 1, axis)
            difference = moved.maps.double().numpy() - there
            errors += [
                np.linalg.norm(d) / np.linalg.norm(t)
                for d, t in zip(difference, there, strict=True)
            ]
            same += (moved.logits.argmax(1) == plain.logits.argmax(1)).tolist()
    assert found.features == pytest.approx(np.mean(errors), rel=1e-12) and found.features > 0.01
    assert found.same_class == pytest.approx(100 * np.mean(same))


def test_without_a_map_only_classes_are_compared() -> None:
    found = shift_error(lambda images: Output(None, images.mean(dim=(2, 3))), IMAGES)
    assert found == (None, 100)
