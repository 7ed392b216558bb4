"""Networks that are held in another order compute what they did."""

from __future__ import annotations

import pytest
import timm
import torch

from srd.models.layout import PlanesConv2d, hold


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name, grouped", [("regnety_002", True), ("mobilenetv3_small_050", False)])
def test_a_network_computes_the_same_in_the_order_that_suits_it(
    name: str, grouped: bool, compiled: bool
) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    seen, expected = [], network(images)
    names = list(network.state_dict())
    hold(network, compiled=compiled)
    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    first.register_forward_hook(lambda layer, given, out: seen.append(out))
    last = images.contiguous(memory_format=torch.channels_last)
    out = network.forward_head(network.forward_features(last))  # as a run reads a network
    torch.testing.assert_close(out, expected)
    assert list(network.state_dict()) == names
    assert seen[0].is_contiguous() == (grouped and not compiled)
    planes = [layer for layer in network.modules() if isinstance(layer, PlanesConv2d)]
    assert bool(planes) == (grouped and compiled)
