"""Everybody's files of weights: found under whatever names, or said what is wrong with them."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from yacs.config import CfgNode

from srd.errors import UserError
from srd.files.checkpoint import explain_mismatch, load_file, load_weights, save_weights
from srd.files.weights import load_into, load_parts
from tests.files.made import WEIGHTS, assert_same, cuts, legacy, one_line, pickled, saved, zipped

LAYOUTS: dict[str, Any] = {
    "plain": WEIGHTS,
    "ordered": OrderedDict(WEIGHTS),
    "model": {"model": WEIGHTS, "epoch": 299, "max_accuracy": 77.2},
    "state_dict": {"state_dict": WEIGHTS, "arch": "resnet18", "epoch": 3},
    "model before state_dict": {"state_dict": {"a": torch.ones(1)}, "model": WEIGHTS},
    "a name before state_dict": {"model": {"name": "resnet18"}, "state_dict": WEIGHTS},
    "weights before their average": {"state_dict_ema": {"a": torch.ones(1)}, "state_dict": WEIGHTS},
    "an average alone": {"model_ema": WEIGHTS, "best": torch.tensor(3.0)},
    "module.": {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    "_orig_mod.": {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "nested": {"model": {f"_orig_mod.module.module.{n}": t for n, t in WEIGHTS.items()}},
    "released": {"model": {**WEIGHTS, "distillation_loss.embed.weight": torch.ones(2)}},
    "wrapped": {
        "model": {
            **{f"model.{n}": t for n, t in WEIGHTS.items()},
            "linear.weight": torch.ones(2),
            "norm_layer.running_mean": torch.ones(2),
        }
    },
    "wrapped in wrappers": {f"module.model.module.{n}": t for n, t in WEIGHTS.items()},
    "both": {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "numbers besides": {**WEIGHTS, "epoch": 3},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found(tmp_path: Path, layout: str, legacy: bool) -> None:
    path = saved(tmp_path / "a.pth", LAYOUTS[layout], _use_new_zipfile_serialization=not legacy)
    assert_same(load_weights(path))


def test_a_module_in_the_middle_of_a_name_stays(tmp_path: Path) -> None:
    weights = {"stem.module.weight": torch.ones(1)}
    assert_same(load_weights(saved(tmp_path / "a.pth", weights)), weights)


def test_weights_of_a_network_and_its_parameters(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    path = saved(tmp_path / "a.pth", {"model": network.state_dict()})
    assert_same(load_weights(str(path)), dict(network.state_dict()))
    assert_same(load_weights(saved(path, dict(network.named_parameters()))),
                dict(network.named_parameters()))  # fmt: skip


def released_config() -> CfgNode:
    """As in the released DeiT file: nested, frozen, with new keys allowed in places."""
    config = CfgNode({"BASE": [""], "MODEL": CfgNode({"TYPE": "deit", "DEPTHS": (2, 2)})})
    config.AUG = CfgNode(new_allowed=True)
    config.AUG.MIXUP = 0.8
    config.AMP_OPT_LEVEL = None
    config.freeze()
    return config


@pytest.mark.parametrize("legacy", [False, True])
def test_the_released_layout_is_read_without_yacs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    content = {
        "model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"t_initial": 300},
        "max_accuracy": 77.2,
        "epoch": 299,
        "config": released_config(),
    }
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=not legacy)
    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import yacs.config  # noqa: F401
    assert_same(load_weights(path))
    config = load_file(path)["config"]
    assert config == {
        "BASE": [""],
        "MODEL": {"TYPE": "deit", "DEPTHS": (2, 2)},
        "AUG": {"MIXUP": 0.8},
        "AMP_OPT_LEVEL": None,
    }
    assert type(config) is type(config["MODEL"]) is dict


WITHOUT = """
import sys
sys.modules.update({name: None for name in ("yacs", "yacs.config")})
from srd.files.checkpoint import load_file, load_weights
print(sorted(load_weights(sys.argv[1])), load_file(sys.argv[1])["config"])
print(load_file(sys.argv[1])["args"], "yacs" in sys.modules and sys.modules["yacs"])
"""


def test_the_released_layout_is_read_in_a_python_without_yacs(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    content = {"model": WEIGHTS, "config": released_config(), "args": argparse.Namespace(a=1)}
    path = saved(tmp_path / "a.pth", content)
    assert run_python("-c", WITHOUT, path).splitlines() == [
        "['head.bias', 'head.weight'] {'BASE': [''], 'MODEL': {'TYPE': 'deit', 'DEPTHS': (2, 2)}, "
        "'AUG': {'MIXUP': 0.8}, 'AMP_OPT_LEVEL': None}",
        "{'a': 1} None",
    ]


def test_a_torchdistill_checkpoint_is_read(tmp_path: Path) -> None:
    """Written by torchdistill's own function, with its own wrapper around the student."""
    pytest.importorskip("torchdistill")
    from torchdistill.common.main_util import save_ckpt
    from torchdistill.models.wrapper import SRDModelWrapper

    student = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    wrapper = SRDModelWrapper(
        {"path": "norm", "io": "output"}, {"num_features": 5, "affine": False},
        device=torch.device("cpu"), device_ids=None, distributed=False,
        linear_kwargs={"in_features": 4, "out_features": 5}, student_model=student,
    )  # fmt: skip
    optimizer = torch.optim.SGD(wrapper.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    arguments = argparse.Namespace(
        config="a.yaml", device=torch.device("cuda", 1), inner=argparse.Namespace(seed=None)
    )
    path = tmp_path / "a.pt"
    save_ckpt(wrapper, optimizer, schedule, 71.9, arguments, str(path))
    found = load_parts(path)
    assert_same(found.student, student.state_dict())
    assert_same(load_weights(path), student.state_dict())
    extras = {n: t for n, t in wrapper.state_dict().items() if not n.startswith("model.")}
    assert {"linear.weight", "linear.bias", "norm_layer.running_mean"} <= set(extras)
    assert_same(found.extras, extras)
    content = load_file(path)
    inner = {"seed": None}
    assert content["args"] == {"config": "a.yaml", "device": "cuda:1", "inner": inner}
    assert type(content["args"]) is dict and content["best_value"] == 71.9
    assert content["lr_scheduler"]["milestones"] == {30: 1, 60: 1}


def test_what_is_beside_the_student_is_not_swallowed(tmp_path: Path) -> None:
    projector = {"distillation_loss.embed.bias": torch.ones(2)}
    path = saved(tmp_path / "a.pth", {"model": {**WEIGHTS, **projector}})
    found = load_parts(path)
    assert_same(found.student)
    assert_same(found.extras, projector)


def test_a_model_with_a_part_called_model_keeps_its_names(tmp_path: Path) -> None:
    weights = {"model.a": torch.ones(1), "head.b": torch.ones(2), "linear.c": torch.ones(3)}
    assert_same(load_weights(saved(tmp_path / "a.pth", weights)), weights)


def test_prefixes_without_end_are_taken_off_at_once(tmp_path: Path) -> None:
    started = time.process_time()
    path = saved(tmp_path / "a.pth", {"module._orig_mod." * 100_000 + "w": torch.ones(1)})
    assert_same(load_weights(path), {"w": torch.ones(1)})
    assert time.process_time() - started < 20


def test_names_that_become_the_same_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"module.a": torch.ones(1), "a": torch.ones(2)})
    with pytest.raises(UserError, match="a twice") as caught:
        load_weights(path)
    one_line(caught, path)


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema"])
def test_the_moving_average_is_there_for_those_who_ask(tmp_path: Path, entry: str) -> None:
    average = {f"module.{name}": tensor + 1 for name, tensor in WEIGHTS.items()}
    path = saved(tmp_path / "a.pth", {entry: average, "state_dict": WEIGHTS, "epoch": 3})
    assert_same(load_weights(path))
    assert_same(load_weights(path, ema=True), {n: t + 1 for n, t in WEIGHTS.items()})


def test_no_moving_average(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"state_dict": WEIGHTS})
    with pytest.raises(UserError, match="no moving average") as caught:
        load_weights(path, ema=True)
    one_line(caught, path)


def test_timm_writes_what_is_read(tmp_path: Path) -> None:
    """timm's own saver, with its own moving average."""
    network = nn.Linear(2, 2)
    average = ModelEmaV3(network)
    with torch.no_grad():
        network.weight.zero_()
    saver = CheckpointSaver(
        network, torch.optim.SGD(network.parameters(), 0.1), argparse.Namespace(model="linear"),
        average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(3, metric=71.5)
    path = tmp_path / "last.pth.tar"
    assert_same(load_weights(path), network.state_dict())
    assert_same(load_weights(path, ema=True), average.module.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".tar", ""])
@pytest.mark.parametrize("write", [zipped, legacy, safetensors.torch.save])
def test_a_file_is_what_its_content_says(
    tmp_path: Path, suffix: str, write: Callable[[Any], bytes]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(write(WEIGHTS))
    assert_same(dict(sorted(load_weights(path).items())), dict(sorted(WEIGHTS.items())))


KINDS = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "complex64",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "bool",
]
NEW_KINDS = ("uint16", "uint64", "float8_e4m3fn")  # torch's old files cannot hold them


@pytest.mark.parametrize(
    "kind, write",
    [(kind, write) for kind in KINDS for write in (zipped, legacy)]
    + [(kind, zipped) for kind in NEW_KINDS],
)
def test_every_type_of_number_is_read(
    tmp_path: Path, kind: str, write: Callable[[Any], bytes]
) -> None:
    path = tmp_path / "a.pth"
    given = torch.arange(6).view(2, 3).to(getattr(torch, kind))
    tensors = {"whole": given, "turned": given.t(), "part": given[1:, 1:], "empty": given[:0]}
    path.write_bytes(write(tensors))
    found = load_weights(path)
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype and found[name].shape == expected.shape
        assert found[name].tolist() == expected.tolist()


def test_plain_values_come_back(tmp_path: Path) -> None:
    content = {
        "model": WEIGHTS, "size": torch.Size([1, 2]), "type": torch.float16, "bytes": b"\x00\xff",
        "text": "grüße", "big": 2**70, "set": {1, "a"}, "nested": [(1, [None, True, 1.5])],
    }  # fmt: skip
    found = load_file(saved(tmp_path / "a.pth", content))
    del found["model"]
    assert found == {
        "size": (1, 2), "type": "torch.float16", "bytes": b"\x00\xff", "text": "grüße",
        "big": 2**70, "set": {1, "a"}, "nested": [(1, [None, True, 1.5])],
    }  # fmt: skip
    assert type(found["size"]) is tuple


def test_parameters_and_shared_tensors_come_back_as_tensors(tmp_path: Path) -> None:
    shared = nn.Parameter(torch.arange(4.0))
    path = saved(tmp_path / "a.pth", {"a": shared, "b": shared, "c": shared.detach()[1:]})
    found = load_weights(path)
    assert {type(value) for value in found.values()} == {Tensor}
    assert not any(value.requires_grad for value in found.values())
    assert torch.equal(found["c"], torch.arange(1.0, 4.0))


# Files that are something else


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"<!DOCTYPE html><html><body>404</body></html>", b"version https://git-lfs\n",
     b"PK\x03\x04garbage", b"\x80\x02", b"\x80\x02}q\x00.", b"\x80\x02X\x05\x00", bytes(100)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_foreign_file_is_an_error_of_one_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_truncated_file_is_an_error_of_one_line(
    tmp_path: Path, write: Callable[[Any], bytes]
) -> None:
    data, path = write({"model": WEIGHTS, "epoch": 3}), tmp_path / "a.pth"
    for size in cuts(data) if write is zipped else range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UserError) as caught:
            load_file(path)
        one_line(caught, path)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_damaged_file_is_read_or_an_error_of_one_line(
    tmp_path: Path, write: Callable[[Any], bytes]
) -> None:
    data, path = bytearray(write({"model": WEIGHTS, "epoch": 3})), tmp_path / "a.pth"
    for position in range(len(data)):
        data[position] ^= 1
        path.write_bytes(data)
        data[position] ^= 1
        try:
            load_file(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


WHAT_ELSE = {
    b"": "is empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n": "git lfs pull",
    b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>": "by hand",
    b"\r\n \xef\xbb\xbf<HTML lang=en>": "web page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "web page",
    b"\x1f\x8b\x08\x00" + bytes(600): "unpack it",
    bytes(257) + b"ustar  \x00" + bytes(800): "unpack it",
    pickled({"a": 1}): "plain pickle",
    pickle.dumps({"a": 1}, 4): "protocol 4",
    b"\x93NUMPY\x01\x00": "neither a torch file nor safetensors",
}


@pytest.mark.parametrize("content", WHAT_ELSE, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_it_is_said_what_a_file_is_instead(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert WHAT_ELSE[content] in one_line(caught, path)


def test_archives_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", zipped(WEIGHTS))
    with pytest.raises(UserError, match="unpack it"):
        load_weights(path)
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(path))
    with pytest.raises(UserError, match=r"TorchScript .* state_dict"):
        load_weights(path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", WEIGHTS)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(UserError, match="Permission denied"):
        load_weights(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, WEIGHTS, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


@pytest.mark.parametrize("content", [[1, 2], "text", 3, WEIGHTS["head.bias"], None], ids=repr)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


def test_a_file_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": WEIGHTS}
    content["again"] = content
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    one_line(caught, path)


def test_a_file_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"epoch": 3, "history": [1, 2]})
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert "epoch, history" in one_line(caught, path)


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(UserError, match=f"no checkpoint at {path}") as caught:
            load_weights(path)
        one_line(caught, path)


# Weights that do not fit


def test_weights_that_fit() -> None:
    explain_mismatch(WEIGHTS, dict(reversed(WEIGHTS.items())), "a.pth", "the student")


def test_weights_that_do_not_fit_are_named() -> None:
    found = {
        "head.weight": torch.zeros(10, 3),
        "extra.a": torch.zeros(1),
        "extra.b": torch.zeros(1),
    }
    with pytest.raises(UserError) as caught:
        explain_mismatch(WEIGHTS, found, "a.pth", "the student")
    said = str(caught.value)
    assert said.startswith("a.pth does not fit the student")
    for part in (
        "1 missing: head.bias",
        "2 unexpected: extra.a, extra.b",
        "(10, 3) instead of (2, 3)",
    ):
        assert part in said
    assert said.index("missing") < said.index("unexpected")


def test_long_lists_are_cut_short() -> None:
    many = {f"layer{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(UserError, match=r"50 missing: layer0, layer1, layer2, \.\.\."):
        explain_mismatch(many, {}, "a.pth", "the student")


def test_weights_go_into_a_model(tmp_path: Path) -> None:
    model, content = nn.Linear(3, 2), {"model": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}
    content["model"]["distillation_loss.embed.weight"] = torch.ones(4)
    path = saved(tmp_path / "a.pth", content)
    assert load_into(model, path, "the student") == ["distillation_loss.embed.weight"]
    assert torch.equal(model.weight, torch.ones(2, 3)) and torch.equal(model.bias, torch.ones(2))
    with pytest.raises(UserError, match=r"a\.pth does not fit the student: .*\(2, 3\) instead of"):
        load_into(nn.Linear(4, 2), path, "the student")
    other = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    assert load_into(model, tmp_path / "absent.pth", "the student", content=other) == []
    assert torch.equal(model.weight, torch.zeros(2, 3))


def test_weights_of_before_batch_norms_counted_are_loaded(tmp_path: Path) -> None:
    old, model = (nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))
    weights = {k: v for k, v in old.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.pth")
    load_into(model, tmp_path / "old.pth", "the student")
    assert torch.equal(model[0].weight, old[0].weight) and model[1].num_batches_tracked == 0
    del weights["1.running_mean"]
    with pytest.raises(UserError, match=r"1 missing: 1\.running_mean"):
        load_into(model, tmp_path / "old.pth", "the student", content=weights)
