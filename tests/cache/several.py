"""Started by torchrun in test_several_processes.py: runs on this many processes, one after the other.

    several.py <folder> <name> <flags as JSON> [<name> <flags> ...]

A name `fill` fills a cache instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from deit import main as deit
from srd.commands import cache
from srd.distributed import processes
from tests.narrow import narrow

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, asked = Path(sys.argv[1]), sys.argv[2:]
    with narrow(), processes.joined(torch.device("cpu")):
        for name, flags in zip(asked[::2], map(json.loads, asked[1::2]), strict=True):
            if name == "fill":
                cache.run(["fill", f"--config={folder / 'deit.yaml'}", *flags])
            else:
                where = [f"--output={folder}", f"--name={name}"]
                deit.run(["--train_student", f"--config={folder / 'deit.yaml'}", *where, *flags])
