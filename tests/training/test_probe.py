"""The probe sees the projector of any loss that has one, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from srd.method.ablation import AblationLoss
from srd.method.feature_losses import ICKD
from srd.method.losses import KD
from srd.method.simple_recipe import SimpleRecipeLoss
from srd.method.spectrum import correlation
from srd.method.vkd import VkDLoss
from srd.training.probe import SAMPLES, ProjectorProbe


@pytest.mark.parametrize("kind", [SimpleRecipeLoss, VkDLoss])
def test_it_sees_the_last_training_batch(kind: type) -> None:
    torch.manual_seed(0)
    loss = kind(6, 9)
    probe = ProjectorProbe(loss)
    assert probe.last_batch() == {}
    z_s, z_t = torch.randn(20, 6, requires_grad=True), torch.randn(20, 9)
    loss(z_s, z_t)
    loss.eval()
    loss(torch.zeros(4, 6), torch.zeros(4, 9))  # an evaluation is none of its business
    projected = F.linear(z_s, loss.projector.weight, loss.projector.bias).detach()
    assert probe.last_batch() == {"correlation": correlation(z_s.detach(), projected)}
    spectrum = probe.spectrum()
    assert list(spectrum["singular_values"]) == sorted(spectrum["singular_values"], reverse=True)
    if kind is VkDLoss:  # orthonormal: all directions alike
        assert spectrum["effective_rank"] == pytest.approx(6)
        assert spectrum["singular_values"][-1] == pytest.approx(1, abs=1e-5)


def test_bits_and_random_numbers_stay() -> None:
    def trained(look: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        loss = SimpleRecipeLoss(6, 9)
        probe = ProjectorProbe(loss if look else None)
        optimizer = torch.optim.SGD(loss.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(torch.randn(20, 6), torch.randn(20, 9)).backward()
            optimizer.step()
            probe.last_batch(), probe.spectrum()
        return loss.projector.weight.detach(), torch.get_rng_state()

    for mine, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.equal(mine, theirs)


def test_tokens_are_kept_in_part() -> None:
    loss = SimpleRecipeLoss(6, 9)
    probe = ProjectorProbe(loss)
    probe._keep(loss, (torch.randn(40, 50, 6), None))
    assert probe.inputs is not None and probe.inputs.shape == (SAMPLES, 6)
    assert probe.inputs.untyped_storage().nbytes() == SAMPLES * 6 * 4  # not the whole batch


@pytest.mark.parametrize("loss", [None, KD()])
def test_without_a_projector_there_is_nothing(loss: torch.nn.Module | None) -> None:
    probe = ProjectorProbe(loss)
    assert probe.last_batch() == {} and probe.spectrum() == {}


def test_what_a_broken_projector_says() -> None:
    loss = SimpleRecipeLoss(6, 9)
    loss.projector.weight.data[0, 0] = torch.nan
    assert ProjectorProbe(loss).spectrum() == {}


def test_channels_of_maps_are_what_is_projected() -> None:
    loss = ICKD(6, 9)
    probe = ProjectorProbe(loss)
    loss(torch.randn(4, 6, 3, 2), torch.randn(4, 9, 3, 2))
    assert probe.inputs is not None and probe.inputs.shape == (4 * 6, 6)
    assert set(probe.last_batch()) == {"correlation"}


def test_a_projector_of_several_layers_has_a_correlation_and_no_spectrum() -> None:
    loss = AblationLoss(6, 9, projector="mlp", hidden_layers=2)
    probe = ProjectorProbe(loss)
    z_s, z_t = torch.randn(40, 6), torch.randn(40, 9)
    loss(z_s, z_t)
    with torch.no_grad():
        table = torch.corrcoef(torch.cat([z_s, loss.embed(z_s)], dim=1).double().T)
    assert probe.last_batch()["correlation"] == pytest.approx(float(table[:6, 6:].abs().mean()))
    assert probe.spectrum() == {}
