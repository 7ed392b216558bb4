"""What a file says of its classifier: checked before anything is built after it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from srd.errors import UserError
from srd.export.classifier import open_classifier
from srd.export.description import Description, exported_with, parse_description, read_description
from srd.export.origin import read_source
from srd.files.checkpoint import save_weights
from srd.models.sizes import TooLarge, build_to_fit

NETWORK = "test_byobnet"


def config(**changes: Any) -> dict[str, Any]:
    """A description as it is written, with values changed: `a__b` is `b` in `a`."""
    described = Description(NETWORK, 3, label_names=("a", "b", "c")).to_config()
    for name, value in changes.items():
        *sections, key = name.split("__")
        inner = described
        for section in sections:
            inner = inner[section]
        inner[key] = value
    return described


@pytest.mark.parametrize(
    ("data", "expected"),
    [(None, False), ({}, False), ({"exif_orientation": None}, True),
     ({"exif_orientation": False}, False), ({"exif_orientation": True}, True)],
)  # fmt: skip
def test_pictures_are_turned_as_the_run_turned_them(data: Any, expected: bool) -> None:
    settings = {} if data is None else {"data": data}
    assert Description(NETWORK, 1, label_names=("a",), settings=settings).turned == expected


def test_what_is_written_is_read() -> None:
    described = parse_description(json.dumps(config()), Path("x"))
    assert described.to_config() == config() and described.labels == ["a", "b", "c"]
    assert exported_with({}, Path("x")) is None


WRONG: dict[str, dict[str, Any]] = {
    "names that are no texts": {"label_names": [1, None]},
    "one name that is none": {"label_names": ["a", "b", None]},
    "a name without end": {"label_names": ["a", "b", "c" * 10**5]},
    "infinitely many classes": {"num_classes": float("inf")},
    "classes in words": {"num_classes": "three"},
    "less than no classes": {"num_classes": -1},
    "a billion classes": {"num_classes": 10**9},
    "no size": {"pretrained_cfg__input_size": []},
    "an endless size": {"pretrained_cfg__input_size": [3, 1, float("inf")]},
    "a size of 32,000 pixels": {"pretrained_cfg__input_size": [3, 32_000, 32_000]},
    "a size below one": {"pretrained_cfg__input_size": [3, 0, 0]},
    "a crop that is not a number": {"pretrained_cfg__crop_pct": float("nan")},
    "a crop below nothing": {"pretrained_cfg__crop_pct": -1},
    "a crop out of an immense picture": {"pretrained_cfg__crop_pct": 0.001},
    "an unknown interpolation": {"pretrained_cfg__interpolation": "bilinaer"},
    "no deviation": {"pretrained_cfg__std": [0, 0, 0]},
    "a deviation that is not a number": {"pretrained_cfg__std": [1, 1, float("nan")]},
    "two means": {"pretrained_cfg__mean": [0.5, 0.5]},
    "a mean in words": {"pretrained_cfg__mean": ["a", "b", "c"]},
    "no preprocessing": {"pretrained_cfg": None},
    "a section of ours that is a list": {"srd": []},
    "facts that are no texts": {"srd__about": {"Model": [1]}},
    "a fact without end": {"srd__about": {"Model": "x" * 10**5}},
    "settings that are a list": {"srd__settings": [1]},
    "deep settings": {"srd__settings": {"a": json.loads("[" * 200 + "]" * 200)}},
    "settings without end": {"srd__settings": {"a": [0] * 100_000}},
    "a setting without end": {"srd__settings": {"a": "x" * 2_000_000}},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_told_in_a_line(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(**WRONG[wrong])))
    with pytest.raises(UserError, match="does not describe a classifier") as caught:
        read_description(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(UserError, match=r"^x does not describe a classifier"):
        exported_with({"srd": json.dumps(config(**WRONG[wrong]))}, Path("x"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\xff", b"9" * 5000, b'"a"', b"null"])
def test_a_configuration_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="does not describe a classifier"):
        read_description(tmp_path)


def test_a_configuration_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="does not describe a classifier"):
        read_description(tmp_path)


IMMENSE: dict[str, dict[str, Any]] = {
    "an immense network": {"architecture": "vit_gigantic_patch14_224"},
    "many classes": {"num_classes": 900_000, "label_names": None},
    "large images": {
        "architecture": "vit_giant_patch14_224", "pretrained_cfg__input_size": [3, 4088, 4088],
    },
    "one that is not built without memory": {
        "architecture": "test_nowhere", "num_classes": 900_000, "label_names": None,
    },
}  # fmt: skip

MEASURED = """
import sys, time
from pathlib import Path
import timm, torch
from timm.models import register_model
from tests.files.yardstick import second
from srd.errors import UserError
from srd.export.classifier import open_classifier

@register_model
def test_nowhere(pretrained=False, num_classes=1000, **_):
    torch.ones(1).to("cpu") + torch.ones(1)  # two devices, inside torch.device("meta")
    torch.ones(1).item()
    return torch.nn.Linear(500, num_classes)

def peak():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if "VmHWM" in row) >> 10

before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try:
        open_classifier(path, halves=[])
    except UserError as error:
        print(path.stem, round((time.process_time() - started) / second(), 2), error, sep="\\t")
print(peak() - before)
"""


def test_a_small_file_that_asks_for_an_immense_network(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    for title, changes in IMMENSE.items():
        about = {"srd": json.dumps(config(**changes))}
        save_weights(
            tmp_path / f"{title}.safetensors", {"head.fc.weight": torch.zeros(3, 4)}, about
        )
    *rows, grown = run_python("-c", MEASURED, tmp_path).splitlines()
    assert {row.split("\t")[0] for row in rows} == set(IMMENSE)
    for row in rows:
        title, seconds, said = row.split("\t")
        assert float(seconds) < 5 and "does not fit" in said, row
        assert str(tmp_path / title) in said
    assert int(grown) < 300


def test_a_network_is_built_after_its_sizes_are_compared() -> None:
    devices: list[str] = []

    def build() -> torch.nn.Module:
        model = torch.nn.Linear(3, 4)
        devices.append(model.weight.device.type)
        return model

    weights, checked = torch.nn.Linear(3, 4).state_dict(), []
    build_to_fit(build, weights, checked.append)
    assert devices == ["meta", "cpu"] and list(checked[0]) == ["weight", "bias"]

    def needs_data() -> torch.nn.Module:
        torch.ones(1).item()
        return torch.nn.Linear(3000, 4000)

    with pytest.raises(TooLarge):
        build_to_fit(needs_data, weights, checked.append)
    larger = torch.nn.Linear(3000, 4000).state_dict()
    assert build_to_fit(needs_data, larger, checked.append).weight.shape == (4000, 3000)


ODD_RUNS: dict[str, dict[str, Any]] = {
    "no identity": {"config": {"identity": 3}, "position": None},
    "classes in words": {"config": {"identity": {"num_classes": "a"}}, "position": {"epoch": "b"}},
    "names that are numbers": {
        "config": {"model": {"name": NETWORK}, "identity": {"num_classes": 3, "class_names": [1, 2, 3]}},
        "position": {"epoch": torch.zeros(2)},
    },
    "tensors as settings": {"config": {"model": {"name": torch.zeros(2)},
                            "identity": {"num_classes": torch.zeros(2)}}, "position": {}},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_RUNS)
def test_a_checkpoint_whose_facts_are_odd(tmp_path: Path, odd: str) -> None:
    weights = timm.create_model(NETWORK, num_classes=3).state_dict()
    torch.save({"model": weights, **ODD_RUNS[odd]}, tmp_path / "last.pth")
    with pytest.raises(UserError) as caught:
        open_classifier(tmp_path / "last.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("result", [
    {"best_epoch": 3, "epochs": "four", "acc1": 1.0}, {"acc1": "high", "epochs": 4},
    {"epochs": 4, "best_epoch": 3}, {"tested": True, "best_epoch": 3, "best_acc1": 1.0},
])  # fmt: skip
def test_a_result_that_is_none(tmp_path: Path, result: dict[str, Any]) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "result.json").write_text(json.dumps(result))
    save_weights(tmp_path / "student.safetensors", {"w": torch.zeros(1)}, {"epoch": "3"})
    assert read_source(tmp_path).measured == "not measured"
