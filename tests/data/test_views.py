"""Views follow (seed, epoch, index) alone: any workers, any order, any process, any restart."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from srd.data.batches import EvalBatches, TrainBatches, rank_share
from srd.data.digits import DigitImages
from srd.data.folder_images import FolderImages
from srd.data.loader import Batch, BrokenFiles, collate, make_loader
from srd.data.views import SeededViews, derive, seeded
from srd.errors import UserError

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


@given(
    size=st.integers(4, 60),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 400),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_training_starts_anywhere_in_an_epoch(
    size: int, batch_size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole, tail = TrainBatches(size, batch_size, seed), TrainBatches(size, batch_size, seed)
    first_step = data.draw(st.integers(0, len(whole)))
    whole.start_at(epoch)
    tail.start_at(epoch, first_step)
    assert list(tail) == list(whole)[first_step:]
    assert len(whole) == len(tail) == len(list(whole)) == size // batch_size
    keys = [key for batch in whole for key in batch]
    assert len(set(keys)) == len(whole) * batch_size
    assert {key[0] for key in keys} == {epoch} and {key[1] for key in keys} <= set(range(size))


def test_there_is_at_most_one_worker_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    loaders = [make_loader(digit_views(), EvalBatches(30, 8), n, False) for n in (0, 1, 2, 9)]
    assert [loader.num_workers for loader in loaders] == [0, 1, 2, 2]


def test_loader_starts_in_the_middle_of_an_epoch() -> None:
    batches = TrainBatches(30, 8, seed=3)
    loader = make_loader(digit_views(), batches, 0, pin_memory=False)
    batches.start_at(2)
    whole = list(loader)
    batches.start_at(2, 1)
    for one, other in zip(whole[1:], loader, strict=True):
        assert torch.equal(one.images, other.images)


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(TrainBatches(50, 5, seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(UserError, match=r"batch of 9 .* 8 training images.*--batch-size"):
        TrainBatches(8, 9, seed=0)


@given(world_size=st.integers(1, 8), half=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_shares_partition_the_batch_in_mirror_pairs(world_size: int, half: int) -> None:
    size = 2 * world_size * half
    shares = [rank_share(range(size), rank, world_size) for rank in range(world_size)]
    assert sorted(i for share in shares for i in share) == list(range(size))
    for share in shares:
        assert len(share) == size // world_size
        for mine, partner in zip(share, reversed(share), strict=True):
            assert mine + partner == size - 1


@pytest.mark.parametrize("size, world_size", [(6, 2), (10, 4), (7, 2)])
def test_a_batch_without_mirror_shares_is_an_error(size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch of {size}"):
        rank_share(range(size), 0, world_size)


def test_an_odd_batch_is_whole_on_one_process() -> None:
    assert rank_share([4, 2, 9], 0, 1) == [4, 2, 9]


def test_ranks_share_every_training_batch() -> None:
    whole = list(TrainBatches(30, 8, seed=1))
    parts = [list(TrainBatches(30, 8, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share) for share in shares] == [4, 4]
        assert sorted(shares[0] + shares[1]) == sorted(batch)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_evaluation_sees_every_image_once(size: int, world_size: int, batch_size: int) -> None:
    seen: list[Key] = []
    for rank in range(world_size):
        batches = EvalBatches(size, batch_size, rank, world_size)
        assert len(list(batches)) == len(batches)
        assert all(len(batch) <= batch_size for batch in batches)
        seen += [key for batch in batches for key in batch]
    assert sorted(seen) == [(0, index) for index in range(size)]


def to_tensor(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).float()


def damaged_folder(make_images: MakeImages, *broken: str) -> FolderImages:
    root = make_images({"train/cat": 3, "train/dog": 3})
    for name in broken:
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:200])
    return FolderImages(root, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_puts_the_next_image_in_place_of_a_broken_one(
    make_images: MakeImages, workers: int
) -> None:
    source = damaged_folder(make_images, "cat/1.jpg", "cat/2.jpg")
    views = SeededViews(source, to_tensor, 0, substitute=True)
    [batch] = make_loader(views, EvalBatches(6, 6), workers, pin_memory=False)
    assert batch.targets.tolist() == [0, 1, 1, 1, 1, 1]
    good = to_tensor(source.load(3)[0])
    assert all(torch.equal(batch.images[i], good) for i in (1, 2, 3))
    assert all(any(source.name(i) in name for name in batch.broken) for i in (1, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_a_broken_image_out(make_images: MakeImages, workers: int) -> None:
    source = damaged_folder(make_images, "cat/0.jpg", "dog/2.jpg")
    views = SeededViews(source, to_tensor, 0, substitute=False)
    first, last = make_loader(views, EvalBatches(6, 5), workers, pin_memory=False)
    assert first.targets.tolist() == [0, 0, 1, 1] and first.images.shape[0] == 4
    assert len(last.targets) == 0
    assert source.name(0) in first.broken[0] and source.name(5) in last.broken[0]


def test_a_substitute_is_not_the_view_that_the_batch_has_already(
    make_images: MakeImages,
) -> None:
    def shifted(image: Image.Image) -> Tensor:
        return to_tensor(image) + torch.rand(1)

    views = SeededViews(damaged_folder(make_images, "cat/1.jpg"), shifted, 0, substitute=True)
    assert bits(views[0, 1].image) != bits(views[0, 2].image)
    assert bits(views[0, 1].image) == bits(views[0, 1].image)


def test_the_last_image_is_followed_by_the_first(make_images: MakeImages) -> None:
    source = damaged_folder(make_images, "dog/2.jpg")
    view = SeededViews(source, to_tensor, 0, substitute=True)[0, 5]
    assert view.target == 0 and torch.equal(view.image, to_tensor(source.load(0)[0]))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 not a picture", b"<html></html>"])
def test_a_foreign_file_is_a_broken_image(make_images: MakeImages, content: bytes) -> None:
    source = damaged_folder(make_images)
    Path(source.name(0)).write_bytes(content)
    view = SeededViews(source, to_tensor, 0, substitute=False)[0, 0]
    assert view.image is None and source.name(0) in view.broken[0]


def test_an_image_that_vanished_is_broken(make_images: MakeImages) -> None:
    source = damaged_folder(make_images)
    Path(source.name(2)).unlink()
    assert source.name(2) in SeededViews(source, to_tensor, 0, substitute=True)[0, 2].broken[0]


def test_a_mistake_in_the_transform_is_not_a_broken_image() -> None:
    def wrong(_: Image.Image) -> Tensor:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        SeededViews(DigitImages("train"), wrong, 0, substitute=True)[0, 0]


def batch_of(*broken: str) -> Batch:
    return Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.long), list(broken))


def test_a_broken_file_stops_the_run_with_its_path() -> None:
    with pytest.raises(UserError, match=r"cannot read /data/a\.jpg.*data\.skip_broken"):
        BrokenFiles(skip=False).check(batch_of("/data/a.jpg (truncated)", "/data/b.jpg (empty)"))
    assert BrokenFiles(skip=False).check(batch_of()) == []


def test_skipped_files_are_counted_once() -> None:
    broken = BrokenFiles(skip=True)
    assert broken.check(batch_of("a", "b", "a")) == ["a", "b"]
    assert broken.check(batch_of("b", "c")) == ["c"]
    assert broken.names == {"a", "b", "c"}


def test_a_training_image_without_a_substitute_stops_even_a_run_that_skips(
    make_images: MakeImages,
) -> None:
    source = damaged_folder(make_images, *(f"{c}/{n}.jpg" for c in ("cat", "dog") for n in "012"))
    views = SeededViews(source, to_tensor, 0, substitute=True)
    with pytest.raises(UserError, match="cat"):
        BrokenFiles(skip=True).check(collate([views[0, 0], views[0, 1]]))


def test_an_evaluation_batch_may_be_all_broken(make_images: MakeImages) -> None:
    source = damaged_folder(make_images, "cat/0.jpg", "cat/1.jpg")
    views = SeededViews(source, to_tensor, 0, substitute=False)
    assert len(BrokenFiles(skip=True).check(collate([views[0, 0], views[0, 1]]))) == 2


def send_from_elsewhere(number: signal.Signals, *pids: int) -> None:
    subprocess.run(["kill", f"-{number.value}", *map(str, pids)], check=True)


def test_workers_outlive_signals_to_the_group_and_die_with_the_parents() -> None:
    batches = EvalBatches(30, 1)
    loader = make_loader(digit_views(), batches, 2, pin_memory=False)
    reading = iter(loader)
    first = [next(reading), next(reading)]  # one from each worker: both have started
    workers = reading._workers
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        send_from_elsewhere(number, *(worker.pid for worker in workers))
    assert len(first + list(reading)) == 30
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(timeout=60)
        assert worker.exitcode == 0
