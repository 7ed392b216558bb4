"""Views follow (seed, epoch, index) alone: any workers, any order, any process, any restart."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from srd.data.batches import TrainBatches
from srd.data.digits import DigitImages
from srd.data.loader import Batch, make_loader
from srd.data.views import SeededViews, derive, seeded

Key = tuple[int, int]  # epoch, index
MakeImages = Callable[[dict[str, int]], Path]  # the fixture `make_images`


def digit_views(seed: int = 3) -> SeededViews:
    """Digits through timm's training transform: draws from random, NumPy and torch."""
    transform = create_transform(
        32,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.5,
        re_mode="pixel",
    )
    return SeededViews(DigitImages("train", per_class=3), transform, seed, substitute=True)


def bits(view: Tensor | None) -> str:
    assert view is not None
    return hashlib.sha256(view.numpy().tobytes()).hexdigest()


def fingerprints(views: SeededViews, keys: Iterable[Key]) -> dict[Key, str]:
    return {key: bits(views[key].image) for key in keys}


KEYS = [(epoch, index) for epoch in (0, 1, 7) for index in (0, 5, 11, 29)]


def test_views_do_not_depend_on_their_order() -> None:
    views, again = digit_views(), digit_views()
    forward = fingerprints(views, KEYS)
    assert fingerprints(again, reversed(KEYS)) == forward
    assert fingerprints(views, KEYS) == forward


def test_views_do_not_depend_on_the_process(run_python: Callable[..., str]) -> None:
    code = (
        "import runpy, sys; here = runpy.run_path(sys.argv[1]);"
        "print(here['fingerprints'](here['digit_views'](), here['KEYS']))"
    )
    fresh = run_python("-c", code, __file__)
    assert fresh.strip() == str(fingerprints(digit_views(), KEYS))


def test_views_differ_between_indices_epochs_and_seeds() -> None:
    source = [(seed, epoch) for seed in (3, 4) for epoch in (0, 1)]
    same_image = {bits(digit_views(seed)[epoch, 5].image) for seed, epoch in source}
    assert len(same_image) == 4

    class OneImage(DigitImages):
        def load(self, index: int) -> tuple[Image.Image, int]:
            return super().load(0)

    views = digit_views()
    views.source = OneImage("train")
    assert len(set(fingerprints(views, [(0, 0), (0, 1), (0, 2)]).values())) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_the_workers(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def read(workers: int) -> list[Batch]:
        batches = TrainBatches(30, 8, seed=3)
        loader = make_loader(digit_views(), batches, workers, pin_memory=False)
        read: list[Batch] = []
        for epoch in (0, 1):
            batches.start_at(epoch)
            read += list(loader)
        return read

    alone, together = read(0), read(workers)
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
    assert not torch.equal(alone[0].images, alone[3].images)


def draws() -> tuple[object, ...]:
    return (
        random.gauss(0, 1),
        random.random(),
        float(np.random.randn()),
        float(np.random.rand()),
        torch.rand(2).tolist(),
    )


def generator_states() -> tuple[object, ...]:
    kind, *words = np.random.get_state()
    numpy = (kind, *(word.tolist() if isinstance(word, np.ndarray) else word for word in words))
    return random.getstate(), numpy, torch.get_rng_state().tolist()


def test_seeded_follows_its_key_and_leaves_nothing_behind() -> None:
    draws()  # odd: half of a pair of normal numbers is waiting in two of the generators
    before = generator_states()
    with seeded(1, 2, 3):
        inside = draws()
    assert generator_states() == before
    draws()
    with seeded(1, 2, 3):
        assert draws() == inside
    with seeded(1, 2, 4):
        assert all(one != other for one, other in zip(draws(), inside, strict=True))


def test_seeded_inside_seeded_leaves_its_draws_alone() -> None:
    with seeded(1):
        expected = [draws(), draws()]
    with seeded(1):
        seen = [draws()]
        with seeded(2):
            draws()
        assert [*seen, draws()] == expected


def test_seeded_puts_the_states_back_after_an_error() -> None:
    before = generator_states()
    with pytest.raises(RuntimeError), seeded(1):
        draws()
        raise RuntimeError
    assert generator_states() == before


def test_keys_do_not_collide() -> None:
    keys = [(s, a, b) for s in range(5) for a in range(8) for b in range(8)]
    assert len({tuple(derive(*key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_runs_generators_alone(workers: int) -> None:
    before = generator_states()
    loader = make_loader(digit_views(), TrainBatches(30, 10, seed=0), workers, pin_memory=False)
    assert len(list(loader)) == 3
    assert generator_states() == before


def test_loader_starts_in_the_middle_of_an_epoch() -> None:
    batches = TrainBatches(30, 8, seed=3)
    loader = make_loader(digit_views(), batches, 0, pin_memory=False)
    batches.start_at(2)
    whole = list(loader)
    batches.start_at(2, 1)
    for one, other in zip(whole[1:], loader, strict=True):
        assert torch.equal(one.images, other.images)
