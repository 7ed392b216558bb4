"""From views to batches: keys, files that cannot be read, workers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from srd.data.batches import EvalBatches, TrainBatches
from srd.data.digits import DigitImages
from srd.data.folder_images import FolderImages
from srd.data.loader import Batch, BrokenFiles, collate, make_loader
from srd.data.views import SeededViews
from srd.errors import UserError

MakeImages = Callable[[dict[str, int]], Path]  # the fixture `make_images`


def to_tensor(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).float()


def digit_views() -> SeededViews:
    """30 digits as they are."""
    return SeededViews(DigitImages("train", per_class=3), to_tensor, 0, substitute=True)


def damaged_folder(make_images: MakeImages, *broken: str) -> FolderImages:
    root = make_images({"train/cat": 3, "train/dog": 3})
    for name in broken:
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:200])
    return FolderImages(root, "train")


def test_there_is_at_most_one_worker_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    loaders = [make_loader(digit_views(), EvalBatches(30, 8), n, False) for n in (0, 1, 2, 9)]
    assert [loader.num_workers for loader in loaders] == [0, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_carries_the_keys_of_its_views(workers: int) -> None:
    batches = TrainBatches(30, 8, seed=3)
    loader = make_loader(digit_views(), batches, workers, pin_memory=False)
    for epoch, first in ((0, 0), (5, 1)):
        batches.start_at(epoch, first)
        keys = [batch.keys for batch in loader]
        batches.start_at(epoch, first)
        assert all(one is not None and one.dtype == torch.int64 for one in keys)
        assert [one.tolist() for one in keys] == [[[*key] for key in keys] for keys in batches]


def test_a_substitute_has_the_key_of_the_view_that_it_stands_for(make_images: MakeImages) -> None:
    views = SeededViews(damaged_folder(make_images, "cat/1.jpg"), to_tensor, 0, substitute=True)
    batch = collate([views[4, 0], views[4, 1], views[4, 5]])
    assert batch.keys is not None and batch.keys.tolist() == [[4, 0], [4, 1], [4, 5]]


def test_an_image_left_out_leaves_its_key_out(make_images: MakeImages) -> None:
    source = damaged_folder(make_images, "cat/1.jpg", "dog/2.jpg")
    views = SeededViews(source, to_tensor, 0, substitute=False)
    batch, empty = collate([views[0, i] for i in range(3)]), collate([views[0, 5]])
    assert batch.keys is not None and batch.keys.tolist() == [[0, 0], [0, 2]]
    assert len(batch.keys) == len(batch.targets) == len(batch.images)
    assert empty.keys is not None and empty.keys.shape == (0, 2)


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
    def bits(image: Tensor | None) -> bytes:
        assert image is not None
        return image.numpy().tobytes()

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
