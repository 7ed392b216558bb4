"""Processes: the group, differentiable reductions, and batch statistics over the global batch.

One convention holds everywhere. Every rank computes the *same* global loss and calls
`backward` on it; `global_sum` passes gradients back summed over ranks; data-parallel training
averages gradients over ranks. Together they give each parameter exactly the gradient of the
global loss, whatever the number of processes. With one process every function here is a no-op.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from srd.distributed.signals import stop_with_torchrun
from srd.errors import UserError

TIMEOUT_SECONDS = 600  # for the other processes to come, or to answer; SRD_DIST_TIMEOUT changes it


T = TypeVar("T")


def world_size() -> int:
    """Number of processes in the group; 1 when there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the group; 0 when there is none."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun (or anything that sets its variables) started.

    Alone, or inside itself, there is nothing to join. GPUs talk over nccl, CPUs over gloo.

    Raises:
        UserError: the others did not come in time.
    """
    stop_with_torchrun()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    _join(device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _join(device: torch.device) -> None:
    seconds = float(os.environ.get("SRD_DIST_TIMEOUT", TIMEOUT_SECONDS))
    limit, start = timedelta(seconds=seconds), time.monotonic()
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
    except (RuntimeError, ValueError) as error:  # torch's network and store errors are the former
        raise _not_met(seconds, error) from None
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_of_this_life(store),
            rank=rank,
            world_size=size,
            timeout=limit,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        if time.monotonic() - start < 0.9 * seconds:
            raise  # another process died on the way: a crash, after which torchrun starts all again
        raise _not_met(seconds, error) from None


def _not_met(seconds: float, error: Exception) -> UserError:
    size, host, port = (os.environ.get(n) for n in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return UserError(
        f"{size} processes were to meet at {host}:{port} and did not within {seconds:.0f} s "
        f"({' '.join(str(error).split())[:120]}): check the host, the port, and that all are started"
    )


def _of_this_life(store: Store) -> Store:
    """`store` without what an earlier life of these processes left there.

    torchrun starts dead processes again beside the store that they used: the new ones would read
    the old addresses. On several machines the lives are not counted alike, and torchrun must make
    a store for each (TORCH_DISABLE_SHARE_RDZV_TCP_STORE, see scripts/launch.sh).
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return PrefixStore(f"life_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def check_same(settings: Any) -> None:
    """Raise a UserError on every rank unless all ranks have the same `settings` (JSON values)."""
    if world_size() == 1:
        return
    mine = json.dumps(settings, sort_keys=True)
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    other = next((number for number, theirs in enumerate(everyone) if theirs != everyone[0]), None)
    if other is not None:
        raise UserError(
            f"process {other} has another configuration than process 0: start all with the same "
            "command, files and versions"
        )


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with its gradients averaged over ranks; alone, or without any, `module` itself."""
    if world_size() == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    # The statistics are global: every rank computes the same buffers. Newer torch renamed the setting.
    names = inspect.signature(DistributedDataParallel).parameters
    still = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    settings: dict[str, Any] = {still: False}
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **settings,
    )


def from_main(compute: Callable[[], T]) -> T:
    """What `compute` returns on the main process, on every process (picklable; not for tensors).

    Raises:
        UserError: on every process, when `compute` raised one.
    """
    if world_size() == 1:
        return compute()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told = [compute(), None]
        except UserError as error:
            told = [None, str(error)]
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]


def ranks_where(here: bool) -> list[int]:
    """The ranks of the processes where `here` is true."""
    if world_size() == 1:
        return [0] if here else []
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, here)
    return [number for number, true in enumerate(everywhere) if true]


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()
