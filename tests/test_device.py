"""Devices and precision, as far as a CPU can show them; GPU parts are marked."""

from __future__ import annotations

import pytest
import torch

from srd.device import Precision, Readback, choose_device, device_name
from srd.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu_the_cpu_is_taken(no_gpu: None, name: str) -> None:
    assert choose_device(name) == CPU
    assert device_name(CPU) == "cpu"


def test_a_gpu_that_is_not_there(no_gpu: None) -> None:
    with pytest.raises(UserError, match=r"--device cuda.*--device cpu"):
        choose_device("cuda")


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1) and chosen == [1]
    assert choose_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"process 2.*torch sees 2"):
        choose_device("auto")


@pytest.mark.parametrize(
    "name, computed, said",
    [
        ("auto", torch.float32, "float32"),
        ("off", torch.float32, "float32"),
        ("bf16", torch.bfloat16, "bfloat16"),
        ("fp64", torch.float64, "float64"),
    ],
)
def test_precision_on_the_cpu(name: str, computed: torch.dtype, said: str) -> None:
    precision = Precision.choose(name, CPU)
    x = torch.ones(2, 2, dtype=precision.dtype)
    with precision.autocast():
        assert (x @ x).dtype == computed
    assert str(precision) == said
    assert not precision.scaler().is_enabled()


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        Precision.choose("fp16", CPU)


@pytest.mark.parametrize(
    "bf16, mixed", [(True, torch.bfloat16), (False, torch.float16)], ids=["new", "old"]
)
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, bf16: bool, mixed: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert Precision.choose("auto", torch.device("cuda")).mixed == mixed


def test_readback_returns_the_values_by_name() -> None:
    values = {
        "loss": torch.tensor(1.5, requires_grad=True),
        "norm": torch.tensor([2.0]),
        "steps": torch.tensor(3),
        "nan": torch.tensor(float("nan")),
        "exact": torch.tensor(0.1, dtype=torch.float64),
    }
    readback = Readback(values)
    read = readback.wait()
    assert read.pop("nan") != read.get("nan")
    assert read == {"loss": 1.5, "norm": 2.0, "steps": 3.0, "exact": 0.1}
    assert list(readback.wait()) == list(values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_readback_from_a_gpu() -> None:
    values = {"a": torch.ones(3, device="cuda").sum(), "b": torch.tensor(2.0, device="cuda")}
    readback = Readback(values)
    values["b"].add_(1)
    assert readback.wait() == {"a": 3.0, "b": 2.0}
    assert readback.wait() == {"a": 3.0, "b": 2.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    precision = Precision.choose(name, choose_device("cuda"))
    x = torch.ones(2, 2, device="cuda")
    with precision.autocast():
        assert (x @ x).dtype == dtype
    assert precision.scaler().is_enabled() == (name == "fp16")
