"""docs/cache.md: its sizes are the code's, and its arithmetic adds up."""

from __future__ import annotations

import re

import pytest
import torch

from srd.cache import recorder, shards
from srd.cache.codec import Codec, Column
from srd.cache.replay import AHEAD, VIEW, in_units
from srd.cache.shards import Layout
from srd.config.fields import Cache
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "cache.md").read_text()
IMAGES, BATCH = 1_281_167, 1024
KINDS = [Cache(dtype="float32"), Cache(), Cache(dtype="int8"), Cache(dtype="int8", top_logits=16)]


def test_sizes() -> None:
    rows = re.findall(r"\| ([\d,]+) \| ([\d.]+ GB) \| ([\d.]+ TB) \|", PAGE)
    told = []
    for kind in KINDS:
        codec = Codec(kind, {"features": (3024,), "logits": (1000,)}, torch.float32)
        columns = {**codec.columns(), VIEW: Column(torch.float32, ())}
        layout = Layout(columns, BATCH, IMAGES // BATCH, "")
        size = layout.epoch_bytes
        told.append((f"{layout.row_bytes:,}", in_units(size), in_units(300 * size)))
    assert rows == told
    assert f"up to {shards.SHARD_STEPS} steps or {shards.SHARD_BYTES >> 20} MB" in PAGE
    assert f"less than {recorder.RESERVE / 1e6:.0f} MB" in PAGE
    assert AHEAD == 8 and "eight steps ahead" in PAGE


@pytest.mark.parametrize("runs", [1, 2, 5, 20])
def test_when_it_pays(runs: int) -> None:
    (row,) = re.findall(rf"^\| {runs} \| (.+) \|$", PAGE, re.M)
    expected = []
    for online in (2.27, 1.70):
        expected += [runs * online, online + runs - 1]
    assert row == " | ".join(f"{value:.2f}" for value in expected)
