"""Batches: shuffled from (seed, epoch), shared out in mirror pairs, every image once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srd.data.batches import EvalBatches, TrainBatches, rank_share
from srd.errors import UserError

Key = tuple[int, int]  # epoch, index


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
