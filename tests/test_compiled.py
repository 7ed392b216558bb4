"""What is compiled, and what is told where it cannot be; longer: that it computes the same."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srd.compiled import PAYS, compile_network, compiles_teacher, forget_compiled, uncompiled
from srd.errors import EXIT_FAILED, UserError, exit_code

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Network(nn.Linear):
    """Not torch's own, which its older compilers leave alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    "asked, device, deterministic, batches, compiled",
    [
        (None, GPU, False, PAYS, True),
        (None, GPU, False, PAYS - 1, False),  # compiling would take longer than it saves
        (None, GPU, True, PAYS, False),
        (None, CPU, False, PAYS, False),
        (True, CPU, True, 1, True),
        (False, GPU, False, PAYS, False),
    ],
)
def test_a_teacher_is_compiled_where_it_is_asked_for_or_pays(
    asked: bool | None, device: torch.device, deterministic: bool, batches: int, compiled: bool
) -> None:
    done = compiles_teacher(asked, device, deterministic=deterministic, batches=batches)
    assert done is compiled


@pytest.mark.parametrize(
    "error, told",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory on the GPU"),
        (torch._dynamo.exc.TorchDynamoException("no"), "leave `compile`"),
    ],
)
def test_what_a_gpu_or_a_compiler_cannot_do_is_told_in_a_line(
    error: RuntimeError, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert exit_code(fail) == EXIT_FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("failed: ") and told in lines[0]


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    none = {"cpp.cxx": (str(tmp_path / "no_compiler"),)}
    torch.compiler.reset()
    with torch._inductor.config.patch(none):
        with pytest.raises(UserError, match=r"torch\.compile does not work here .*leave it out"):
            compile_network(nn.Linear(2, 2), CPU, asked=True)
        compile_network(nn.Linear(2, 2), CPU, asked=None)
    assert "the teacher is not compiled (" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_networks_compute_the_same_and_evaluations_leave_them_be(
    tmp_path: Path, recipe: Path, deit: Any, open_run: Any, narrow: None
) -> None:
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        done = deit(
            "--train_student", f"--config={recipe}", f"--output={tmp_path}", f"--name={name}",
            "--epochs=1", *flags,
        )  # fmt: skip
        assert done.code == 0, done.err
    plain, compiled = (open_run(tmp_path / name).rows("step") for name in ("plain", "compiled"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] in (2, 3)  # and the probe's
    for one, other in zip(plain, compiled, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_inside_uncompiled_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append("compiled")
        return graph.forward

    network = Network(2, 2)
    monkeypatch.setattr("srd.compiled._compiled", [network])
    network.compile(backend=backend)
    with uncompiled():
        network(torch.ones(1, 2))
    assert calls == []
    for times in (1, 2):
        network(torch.ones(1, 2))
        assert calls == ["compiled"] * times
        forget_compiled()


@pytest.mark.parametrize("asked", [True, None])
def test_what_fails_to_compile_runs_as_it_is_unless_it_was_asked_for(
    asked: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise ValueError("no such kernel")

    monkeypatch.setattr(
        "srd.compiled._missing", lambda device: None
    )  # a compiler, of other networks
    network, x = Network(2, 2), torch.ones(1, 2)
    expected = network(x)
    with torch._dynamo.config.patch(suppress_errors=False):
        compile_network(network, CPU, asked=asked)
        network.compile(backend=backend)
        if asked:
            with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="no such kernel"):
                network(x)
        else:
            assert torch.equal(network(x), expected)


def test_a_network_that_nobody_needs_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srd.compiled._missing", lambda device: None)  # nothing is called here
    network = nn.Linear(2, 2)
    left = weakref.ref(network)
    compile_network(network, CPU, asked=True)
    del network
    gc.collect()
    assert left() is None
