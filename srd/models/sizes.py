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
from torch.overrides import TorchFunctionMode

SPARE = 1_000_000  # numbers beyond the file's; some networks register a parameter twice
DRAWS = {  # methods of tensors, and functions of torch.nn.init
    "uniform_", "normal_", "erfinv_", "trunc_normal_", "orthogonal_",
    "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_",
}  # fmt: skip


class TooLarge(Exception):
    """A network has far more parameters than a file."""


def build_to_fit(
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    check: Callable[[Mapping[str, Tensor]], object],
) -> nn.Module:
    """The network that `build` makes, which is made with its memory only if `check` accepts it.

    Its parameters have no values yet: what they start from is not drawn.

    Args:
        weights: what is in the file.
        check: is given the network's state dict, perhaps of tensors without data; raises what its
            caller wants where they do not fit.

    Raises:
        TooLarge: it has far more parameters than there are numbers in `weights`, and cannot be built
            without memory. Whatever `build` raises.
    """
    try:
        with torch.device("meta"), Undrawn("clamp_"):
            sizes = build().state_dict()
    except Exception:  # some networks compute with their buffers, which have no data there
        most = 2 * sum(value.numel() for value in weights.values()) + SPARE
        with at_most(most), Undrawn():
            network = build()
        check(network.state_dict())
        return network
    check(sizes)
    with Undrawn():
        return build()


class Undrawn(TorchFunctionMode):
    """Inside, networks are built without random numbers: a third of the time for a large one.

    Args:
        others: functions that are left out, too.
    """

    def __init__(self, *others: str) -> None:
        super().__init__()
        self.skipped = {*DRAWS, *others}

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if getattr(function, "__name__", "") in self.skipped:
            return arguments[0] if arguments else keywords["tensor"]
        return function(*arguments, **keywords)


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
