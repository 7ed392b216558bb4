"""Accuracy is counted exactly, whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from srd.data.loader import Batch, BrokenFiles
from srd.device import Precision
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, evaluate, evaluating

OFF = Precision.choose("off", torch.device("cpu"))


def samples(count: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Images whose pixels are their logits, without ties, and their targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator)
    return logits.view(count, 1, 1, classes), torch.arange(count) % classes


def predict(images: Tensor) -> Tensor:
    return images.flatten(1)


def batches(images: Tensor, targets: Tensor, size: int) -> Iterator[Batch]:
    for start in range(0, len(targets), size):
        yield Batch(images[start : start + size], targets[start : start + size], [])


def measured(images: Tensor, targets: Tensor, size: int) -> Accuracy:
    return evaluate(predict, batches(images, targets, size), OFF, BrokenFiles(skip=False))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_accuracy_is_counted_exactly(size: int) -> None:
    images, targets = samples(23)
    logits = predict(images).double().numpy()
    own = logits[np.arange(23), targets]
    better = (logits > own[:, None]).sum(axis=1)
    found = measured(images, targets, size)
    assert found.acc1 == pytest.approx(100 * (better == 0).sum() / 23, abs=1e-12)
    assert found.acc5 == pytest.approx(100 * (better < 5).sum() / 23, abs=1e-12)
    expected = (np.log(np.exp(logits).sum(axis=1)) - own).mean()
    assert found.loss == pytest.approx(expected, abs=1e-6)
    assert found.images == 23 and found.images_per_second > 0


def test_fewer_than_five_classes() -> None:
    assert measured(*samples(12, classes=3), 5).acc5 == 100


def test_the_row_holds_the_contract() -> None:
    row = measured(*samples(5), 5).row()
    assert set(row) == {"acc1", "acc5", "loss", "images"} and row["images"] == 5


def test_batches_without_an_image_are_passed_over() -> None:
    images, targets = samples(6)
    empty = Batch(torch.empty(0), torch.empty(0, dtype=torch.long), ["a.jpg (damaged)"])
    broken = BrokenFiles(skip=True)
    seen: list[int] = []
    found = evaluate(
        predict, [empty, *batches(images, targets, 4), empty], OFF, broken, seen.append
    )
    assert (found.images, seen) == (6, [4, 2])
    assert broken.names == {"a.jpg (damaged)"}


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(UserError, match="no image could be evaluated"):
        evaluate(predict, [], OFF, BrokenFiles(skip=True))


def test_a_broken_file_stops_the_evaluation() -> None:
    images, targets = samples(2)
    with pytest.raises(UserError, match=r"a\.jpg"):
        evaluate(predict, [Batch(images, targets, ["a.jpg (damaged)"])], OFF, BrokenFiles(False))


def test_no_gradient_is_kept() -> None:
    def watch(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return predict(images)

    images, targets = samples(4)
    evaluate(watch, batches(images, targets, 4), OFF, BrokenFiles(False))


def test_logits_in_bf16_are_judged_in_float32() -> None:
    images, targets = samples(8)

    def rounded(images: Tensor) -> Tensor:
        return predict(images).bfloat16()

    found = evaluate(rounded, batches(images, targets, 8), OFF, BrokenFiles(False))
    exact = predict(images).bfloat16().double().log_softmax(dim=1)
    expected = -exact[torch.arange(8), targets].mean().item()
    assert math.isclose(found.loss, expected, abs_tol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_gets_its_mode_back(training: bool) -> None:
    model = nn.Sequential(nn.Dropout())
    model.train(training)
    with evaluating(model):
        assert not model[0].training
    assert model.training is model[0].training is training
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training is training
