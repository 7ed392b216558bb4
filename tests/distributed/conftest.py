"""What two processes compute together, beside what one computes alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

Results = dict[str, dict[str, Tensor]]
PROGRAM = Path(__file__).with_name("two_ranks.py")
SPLIT = {"inputs", "out", "evaluated"}  # one row for each sample; everything else is shared


@pytest.fixture(scope="package")
def two_ranks() -> ModuleType:
    """The program as a module, for one process."""
    spec = importlib.util.spec_from_file_location("two_ranks", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """The results of two processes, started by torchrun, that met over gloo."""
    out = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(PROGRAM), str(out)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(out / "0.pth"), torch.load(out / "1.pth")


@pytest.fixture(scope="package")
def whole(two_ranks: ModuleType) -> Results:
    return two_ranks.results()


@pytest.fixture
def assert_equal(halves: tuple[Results, Results], whole: Results) -> Callable[..., None]:
    """`assert_equal(case)`: two processes agree, and compute what one computes on the whole batch.

    `within` is the largest difference, relative to a tensor's largest value above 1.
    """

    def check(case: str, within: float = 1e-10) -> None:
        first, second = halves[0][case], halves[1][case]
        assert set(first) == set(second) == set(whole[case])
        for name, expected in whole[case].items():
            if name in SPLIT:
                together = torch.cat([first[name], second[name]])
            else:
                together = first[name]
                torch.testing.assert_close(second[name], together, rtol=0, atol=0, msg=name)
            scale = max(1.0, expected.double().abs().max().item())
            torch.testing.assert_close(
                together, expected, rtol=0, atol=within * scale, msg=f"{case}: {name}"
            )

    return check
