"""Networks that `torch.compile` compiles: which, from when on it pays, and where they run as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn

from srd.errors import UserError, warn

PAYS = 2000  # batches from which compiling a frozen teacher saves more time than it takes

_compiled: WeakSet[nn.Module] = WeakSet()  # which a run that is over leaves


def compiles_teacher(
    asked: bool | None, device: torch.device, *, deterministic: bool, batches: int
) -> bool:
    """Whether a frozen teacher is compiled: where it was asked for, or by itself on a GPU in a long run.

    Compiled kernels may be tuned to other sums in the next process, so not where bits must be the same.
    """
    if asked is None:
        return device.type == "cuda" and not deterministic and batches >= PAYS
    return asked


def compile_network(network: nn.Module, device: torch.device, *, asked: bool | None) -> bool:
    """Compile what `network` does in training; evaluations are left as they are (`uncompiled`).

    Args:
        asked: True: it must be compiled. Otherwise, where that is impossible, it runs as it is.

    Returns:
        Whether it is compiled.

    Raises:
        UserError: it was asked for, and there is no compiler.
    """
    torch._dynamo.config.suppress_errors = False
    if (reason := _missing(device)) and asked:
        raise UserError(f"compile: torch.compile does not work here ({reason}): leave it out")
    if reason:
        warn(f"the teacher is not compiled ({reason})")
        return False
    torch._dynamo.config.suppress_errors = not asked
    network.compile()
    _compiled.add(network)
    return True


def forget_compiled() -> None:
    """Compile anew at the next call: hooks, which compiled code does not look for, have changed."""
    if _compiled:
        torch.compiler.reset()


def _missing(device: torch.device) -> str | None:
    """Why nothing can be compiled, such as a missing C compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # torch's own, a compiler's: no common class
        return (" ".join(str(error).split()) or type(error).__name__)[:160]
    return None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled networks run as they are: other sizes of batches would each be compiled too."""
    if not _compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
