"""Columns: exact in float32, and how far off the others are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srd.cache.codec import Codec
from srd.config.fields import Cache
from srd.errors import UserError

ROWS, WIDTH, CLASSES, TOKENS = 6, 48, 40, 5
FIELDS = {"features": (WIDTH,), "logits": (CLASSES,), "tokens": (TOKENS, WIDTH)}


def values(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: (3 * torch.randn(ROWS, *shape, generator=draw)).to(dtype)
        for name, shape in FIELDS.items()
    }


def both_ways(cache: Cache, given: dict[str, Tensor], exact: torch.dtype) -> dict[str, Tensor]:
    codec = Codec(cache, FIELDS, exact)
    columns = codec.encode(given)
    expected = codec.columns()
    assert {n: (v.dtype, tuple(v.shape[1:])) for n, v in columns.items()} == expected
    return codec.decode(columns)


@pytest.mark.parametrize("exact", [torch.float32, torch.float64])
def test_float32_is_exact(exact: torch.dtype) -> None:
    given = values(exact)
    for name, value in both_ways(Cache(dtype="float32"), given, exact).items():
        assert value.dtype == exact and torch.equal(value, given[name])


def test_what_autocast_computes_is_exact_too() -> None:
    given = values(torch.bfloat16)
    for name, value in both_ways(Cache(dtype="float32"), given, torch.float32).items():
        assert torch.equal(value, given[name].float())


def test_float16_rounds_to_eleven_bits_and_saturates() -> None:
    given = values()
    given["features"][0, 0] = 1e6
    back = both_ways(Cache(), given, torch.float32)
    assert back["features"][0, 0] == 65504
    given["features"][0, 0] = 65504
    for name, value in back.items():
        assert torch.allclose(value, given[name], rtol=2**-11, atol=1e-7)


def test_int8_has_a_scale_for_each_vector() -> None:
    given = values()
    given["features"][1] *= 1000
    given["features"][2] = 0
    back = both_ways(Cache(dtype="int8"), given, torch.float32)
    for name in ("features", "tokens"):
        largest = given[name].abs().amax(dim=-1, keepdim=True)
        assert ((back[name] - given[name]).abs() <= largest / 254 * 1.001).all()
    assert torch.equal(back["features"][2], given["features"][2])
    assert torch.allclose(back["logits"], given["logits"], rtol=2**-11)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_largest_logits_keep_their_probabilities_and_the_rest_is_spread(dtype: str) -> None:
    given = values()
    logits = both_ways(Cache(dtype=dtype, top_logits=7), given, torch.float32)["logits"]  # type: ignore[arg-type]
    true, kept = given["logits"].softmax(-1), logits.softmax(-1)
    top = true.topk(7).indices
    assert torch.allclose(kept.gather(1, top), true.gather(1, top), rtol=2e-3)
    rest = torch.ones_like(true).scatter(1, top, 0).bool()
    spread = (1 - true.gather(1, top).sum(1)) / (CLASSES - 7)
    assert torch.allclose(kept[rest].view(ROWS, -1), spread[:, None].expand(-1, 33), rtol=5e-3)


def test_a_certain_teacher_leaves_nothing_to_spread() -> None:
    given = values()
    given["logits"][:, 0] = 1e4
    logits = both_ways(Cache(top_logits=1), given, torch.float32)["logits"]
    assert torch.isfinite(logits).all() and (logits.argmax(-1) == 0).all()


def test_bytes_of_an_imagenet_view() -> None:
    """The page says about 8 and about 3 KB."""
    fields = {"features": (3024,), "logits": (1000,)}

    def size(cache: Cache) -> int:
        columns = Codec(cache, fields, torch.float32).columns()
        return sum(column.row_bytes for column in columns.values())

    assert size(Cache(dtype="float32")) == 4 * 4024
    assert size(Cache()) == 2 * 4024
    assert size(Cache(dtype="int8", top_logits=16)) == 3024 + 4 + 16 * 4 + 4


def test_all_logits_are_not_the_largest_ones() -> None:
    with pytest.raises(UserError, match="top_logits 40 of 40 classes"):
        Codec(Cache(top_logits=CLASSES), FIELDS, torch.float32)
