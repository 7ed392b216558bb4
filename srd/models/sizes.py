"""A network built only after the sizes of its tensors have been compared with those in a file.

What a file says of itself costs its author nothing: a few kilobytes can ask for three million classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

SPARE = 1_000_000  # numbers beyond the file's; some networks register a parameter twice


class TooLarge(Exception):
    """A network has far more parameters than a file."""


def build_to_fit(
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    check: Callable[[Mapping[str, Tensor]], object],
) -> nn.Module:
    """The network that `build` makes, which is made with its memory only if `check` accepts it.

    Args:
        weights: what is in the file.
        check: is given the network's state dict, perhaps of tensors without data; raises what its
            caller wants where they do not fit.

    Raises:
        TooLarge: it has far more parameters than there are numbers in `weights`, and cannot be built
            without memory. Whatever `build` raises.
    """
    try:
        with torch.device("meta"):
            sizes = build().state_dict()
    except Exception:  # some networks compute with their buffers, which have no data there
        with at_most(2 * sum(value.numel() for value in weights.values()) + SPARE):
            network = build()
        check(network.state_dict())
        return network
    check(sizes)
    return build()


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Inside, networks with more parameters than that are not built further (TooLarge).

    A parameter is counted before anything is written into its memory.
    """
    left = numbers

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal left
        left -= parameter.numel() if isinstance(parameter, Tensor) else 0
        if left < 0:
            raise TooLarge(f"it has more than {numbers:,} parameters")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
