"""Shards: rows of any share out of shares of any other count, each with its checksum."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from srd.cache.codec import Codec, Column, Values
from srd.cache.reader import Reader, row_damage, salvage
from srd.cache.recorder import Recorder
from srd.cache.shards import Damaged, Layout, Shelf, positions, runs
from srd.config.fields import Cache
from srd.data.batches import rank_share
from srd.errors import UserError

BATCH, STEPS = 16, 5
COLUMNS = {
    "features": Column(torch.float16, (3, 2)),
    "features.scale": Column(torch.float32, ()),
    "logits": Column(torch.int8, (5,)),
}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, Layout(COLUMNS, BATCH, STEPS, "digest"))


def batch(epoch: int, step: int) -> Values:
    """The rows of a whole batch."""
    draw = torch.Generator().manual_seed(100 * epoch + step)
    rows = torch.randint(-100, 100, (BATCH, 12), generator=draw)
    return {
        "features": rows[:, :6].reshape(BATCH, 3, 2).half(),
        "features.scale": rows[:, 6].float(),
        "logits": rows[:, 7:].to(torch.int8),
    }


def record(shelf: Shelf, world: int, *, epoch: int = 1, steps: range = range(STEPS)) -> None:
    for rank in range(world):
        recorder, share = Recorder(shelf, rank, world), list(positions(BATCH, rank, world))
        for step in steps:
            recorder.put(epoch, step, {n: v[share] for n, v in batch(epoch, step).items()})
        recorder.close()
        assert recorder.failure is None


def assert_reads(shelf: Shelf, world: int, *, epoch: int = 1, steps: range = range(STEPS)) -> None:
    for rank in range(world):
        reader, share = Reader(shelf, rank, world), rank_share(range(BATCH), rank, world)
        for step in steps:
            rows = reader.get((epoch, step), [(epoch, step + 1), (epoch, step + 2)])
            assert rows is not None
            for name, value in batch(epoch, step).items():
                assert torch.equal(rows[name], value[share]), (name, rank, step)
        reader.close()


@pytest.mark.parametrize("recorded", [1, 2, 4, 8])
def test_any_share_is_read_out_of_any_other(shelf: Shelf, recorded: int) -> None:
    record(shelf, recorded)
    assert shelf.missing(1) == [] and shelf.missing(0) == list(range(STEPS))
    for world in (1, 2, 4, 8):
        assert_reads(shelf, world)


def test_parts_of_several_counts_complete_each_other(shelf: Shelf) -> None:
    record(shelf, 4, steps=range(2))
    record(shelf, 1, steps=range(2, 3))
    assert shelf.missing(1) == [3, 4]
    record(shelf, 2, steps=range(1, 5))
    assert shelf.missing(1) == []
    assert_reads(shelf, 2)


def test_a_share_that_lacks_rows_is_missing(shelf: Shelf) -> None:
    record(shelf, 2)
    for file in shelf.epoch_folder(1).glob("*_rows_1of2.safetensors"):
        file.unlink()
    shelf.forget()
    assert shelf.missing(1) == list(range(STEPS))
    first, second = Reader(shelf, 0, 2), Reader(shelf, 1, 2)
    assert first.get((1, 0)) is not None and second.get((1, 0)) is None
    first.close()
    second.close()


def test_runs_are_as_few_as_can_be() -> None:
    whole = tuple(range(16))
    assert [tuple(run) for run in runs(positions(16, 1, 4), whole)] == [(0, 2, 2), (2, 12, 2)]
    assert [tuple(run) for run in runs(whole, positions(16, 0, 2))] == [(0, 0, 4), (12, 4, 4)]
    assert positions(16, 2, 2) == () and positions(16, 0, 3) == ()


def test_every_byte_counts(shelf: Shelf) -> None:
    """Whichever is changed, the header's too: damage is found, or nothing was changed."""
    record(shelf, 1)
    (shard,) = shelf.shards(1)
    whole = shard.path.read_bytes()
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 1
        shard.path.write_bytes(data)
        damage = row_damage(shelf, shard)
        assert isinstance(damage, Damaged) or (at < 1000 and b"  " in whole[at - 1 : at + 2]), at
    shard.path.write_bytes(whole)
    assert row_damage(shelf, shard) is None


def test_what_is_whole_of_a_damaged_shard_stays(shelf: Shelf) -> None:
    record(shelf, 1)
    (shard,) = shelf.shards(1)
    data = bytearray(shard.path.read_bytes())
    data[-1] ^= 1  # the last row of int8 logits: of the last step
    shard.path.write_bytes(data)
    salvage(shelf, shard.path)
    assert shelf.missing(1) == [4] and shard.path.with_name(shard.path.name + ".damaged").exists()
    assert_reads(shelf, 2, steps=range(4))
    salvage(shelf, shard.path)  # another process was faster
    record(shelf, 1, steps=range(4, 5))
    assert_reads(shelf, 1)


def test_a_shard_of_another_cache_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    record(shelf, 1)
    other = Shelf(tmp_path, Layout(COLUMNS, BATCH, STEPS, "another"))
    reader = Reader(other, 0, 1)
    with pytest.raises(Damaged, match="belongs to another cache"):
        reader.get((1, 0))
    reader.close()


def test_a_shard_that_is_cut_short_is_missing(shelf: Shelf) -> None:
    record(shelf, 1)
    (shard,) = shelf.shards(1)
    os.truncate(shard.path, 500)
    shelf.forget()
    assert shelf.missing(1) == list(range(STEPS)) and shelf.cut == {shard.path}


def test_strange_names_are_no_shards(shelf: Shelf) -> None:
    folder = shelf.epoch_folder(0)
    folder.mkdir()
    for name in ("steps_000000_000099_rows_0of1", "steps_000003_000001_rows_0of1",
                 "steps_000000_000001_rows_5of3", "steps_000000_000001_rows_0of0", "x"):  # fmt: skip
        (folder / f"{name}.safetensors").touch()
    assert shelf.shards(0) == [] and not shelf.cut


@pytest.mark.parametrize(
    ("value", "message"), [(1e5, "beyond 65,504"), (float("nan"), "no finite numbers")]
)
def test_what_cannot_be_kept_is_not_recorded(shelf: Shelf, value: float, message: str) -> None:
    recorder, columns = Recorder(shelf, 0, 1), batch(1, 0)
    codec = Codec(Cache(), {"features": (3, 2)}, torch.float32)
    values = {"features": columns["features"].float()}
    values["features"][3, 1, 1] = value
    recorder.put(1, 0, columns | codec.encode(values))
    recorder.close()
    assert isinstance(recorder.failure, UserError) and message in str(recorder.failure)
    assert shelf.shards(1) == []


def test_leftovers_of_a_killed_recorder_go(shelf: Shelf) -> None:
    folder = shelf.epoch_folder(1)
    folder.mkdir()
    left = folder / ".steps_000000_000005_rows_0of1.safetensors.abc.part"
    others = folder / ".steps_000000_000005_rows_1of2.safetensors.abc.part"
    left.touch()
    others.touch()
    record(shelf, 1)
    assert not left.exists() and others.exists() and not list(folder.glob(".turn*"))
