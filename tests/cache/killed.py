"""Started by test_killed.py: trainings killed at random instants, again and again, until each is through.

    killed.py <kills> <cache> <output> <flag> ...

Each fork is a process of its own that has everything imported, so that most instants are in the
training. Prints the names of the runs that came through, and how many processes were killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from itertools import count

import torch

import srd.training.train  # noqa: F401  (so that forks need not)
from deit import main
from srd.cache import shards
from srd.errors import exit_code
from tests.narrow import narrow


def start(name: str, arguments: list[str]) -> int:
    """A run in a process of its own; its number."""
    if (child := os.fork()) == 0:
        with narrow():
            os._exit(exit_code(lambda: main.run(["--train_student", f"--name={name}", *arguments])))
    return child


def ended(child: int) -> bool:
    """Whether a run has come to its end."""
    process, status = os.waitpid(child, os.WNOHANG)
    assert status == 0, status
    return process == child


if __name__ == "__main__":
    torch.set_num_threads(1)
    shards.SHARD_STEPS = 2
    kills, cache, output, *flags = sys.argv[1:]
    flags.append(f"--output={output}")
    started = time.monotonic()
    os.waitpid(start("alone", flags), 0)
    whole, left, draw = time.monotonic() - started, int(kills), random.Random(0)
    for number in count():
        if left == 0:
            break
        name = f"run{number}"
        asked = [*flags, f"--teacher-cache={cache}{number}"]
        child = start(name, asked)
        while True:
            time.sleep(draw.uniform(0, 1.2 * whole))
            if ended(child):
                break
            if left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                left, child = left - 1, start(name, asked)
        print(name, flush=True)
