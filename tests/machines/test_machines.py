"""Several machines, and SLURM, for real: `pytest -m machines`, as root. Minutes.

Each script says on its own what it does; it exits with 77 where it cannot run, and says why.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CANNOT_RUN = 77


@pytest.mark.machines
@pytest.mark.parametrize("script", ["two_machines.sh", "slurm.sh"])
def test_the_run_ends_in_the_same_bits(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [HERE / script, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0 and "run: the same bits" in done.stdout, done.stdout
