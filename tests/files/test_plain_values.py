"""What honest checkpoints hold beside weights, in either of torch's formats, and types of weights."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from srd.errors import UserError
from srd.files.checkpoint import load_file
from srd.files.reading.safetensors import NEWER, write_safetensors
from srd.files.weights import load_weights
from tests.files.made import WEIGHTS, assert_same, legacy, zipped


def with_attribute() -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "kept by torch with the tensor"  # type: ignore[attr-defined]
    return parameter


SHARED = np.arange(3.0)
KINDS = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64",
         "complex64", "complex128")  # fmt: skip
VALUES: dict[str, tuple[Any, Any]] = {
    "a number of NumPy's": (np.float64(71.5), 71.5),
    "a flag of NumPy's": (np.bool_(True), True),
    "a whole number of NumPy's": (np.int64(-3), -3),
    "a number in the other order": (np.array([1.5], ">f4")[0], 1.5),
    "an array": (np.arange(6.0).reshape(2, 3), torch.arange(6.0).double().view(2, 3)),
    "an array by column": (np.asfortranarray([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]])),
    "an array in the other order": (np.array([1, 258], ">i4"), torch.tensor([1, 258]).int()),
    "an array without items": (np.zeros((0, 3), np.float32), torch.zeros(0, 3)),
    "an array without dimensions": (np.array(2.0), torch.tensor(2.0).double()),
    "one array twice": ([SHARED, SHARED], [torch.arange(3.0).double()] * 2),
    "an expanded tensor": (torch.ones(1).expand(1000), torch.ones(1000)),
    "a parameter": (nn.Parameter(torch.ones(2)), torch.ones(2)),
    "a parameter with an attribute": (with_attribute(), torch.ones(2)),
    "a buffer": (nn.Buffer(torch.ones(2)), torch.ones(2)),
    "a dictionary with a factory": (defaultdict(list, a=[1]), {"a": [1]}),
    "a dictionary without one": (defaultdict(None, a=1), {"a": 1}),
    "a complex number": (1.5 - 2j, 1.5 - 2j),
    "a frozen set": (frozenset({1, "a"}), {1, "a"}),
    "no bytes": (b"", b""),
    "settings": (Namespace(best=np.float32(0.5)), {"best": 0.5}),
    **{f"an array of {kind}": (np.array([0, 1], kind), torch.from_numpy(np.array([0, 1], kind)))
       for kind in KINDS},
}  # fmt: skip


def same(read: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return read.dtype == expected.dtype and torch.equal(read, expected)
    if isinstance(expected, list):
        return all(map(same, read, expected))
    return type(read) in (type(expected), frozenset) and read == expected


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("write", [zipped, legacy])
def test_values_that_honest_files_hold(tmp_path: Path, write: Any, what: str) -> None:
    value, expected = VALUES[what]
    path = tmp_path / "a.pth"
    path.write_bytes(write({"model": WEIGHTS, "best": value, "again": {"x": value}}))
    read = load_file(path)
    assert same(read["best"], expected) and same(read["again"]["x"], expected)
    assert_same(load_weights(path))


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([{}]), np.array(1, "datetime64[s]"),
                                   np.zeros(1, [("a", "f4")])])  # fmt: skip
def test_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(zipped({"model": WEIGHTS, "names": array}))
    with pytest.raises(UserError, match=r"holds NumPy's values of the type '?.\d.*: refused"):
        load_weights(path)


def test_a_number_that_is_shown_too_often(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(20_000_000)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds 80,000,000 bytes of tensors in 4: refused"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", NEWER)
def test_newer_types_of_safetensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    header = f'{{"w":{{"dtype":"{kind}","shape":[2,8],"data_offsets":[0,%d]}}}}'
    data = bytes(range(8 if kind == "F4" else 16))
    header = header % len(data)
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    if not hasattr(torch, NEWER[kind]):
        with pytest.raises(UserError, match=f"holds numbers of the type {kind}"):
            load_weights(path)
        return
    weights = load_weights(path)["w"]
    assert weights.dtype == getattr(torch, NEWER[kind])
    assert weights.view(torch.uint8).flatten().tolist() == list(data)
    with open(tmp_path / "b.safetensors", "wb") as file:
        write_safetensors(file, {"w": weights}, {})
    theirs = safetensors.torch.load_file(tmp_path / "b.safetensors")["w"]
    assert theirs.dtype == weights.dtype and theirs.shape == weights.shape


@pytest.mark.parametrize("shape", ["[]", "[7]", '["8"]', "[true]"])
def test_halves_that_do_not_pair(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "a.safetensors"
    header = f'{{"w":{{"dtype":"F4","shape":{shape},"data_offsets":[0,4]}}}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(UserError, match=r"in an unknown way: refused|not known here"):
        load_weights(path)
