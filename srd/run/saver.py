"""Checkpoints from a snapshot: a thread writes the files while the run goes on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


class Saver:
    """Writes one state at a time; the next waits until the one before is on the disk.

    A save blocks for as long as the state's tensors take to be copied into memory that is kept for
    the next one. What goes wrong in the thread is raised by the call that comes after.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._room: dict[str, Tensor] = {}

    def save(self, state: State, write: Callable[[State], object]) -> None:
        """Copy `state`, and call `write` with the copy, in a thread.

        Raises:
            RunFailed: the save before failed.
        """
        self.wait()
        snapshot = self._snapshot(state)
        self._thread = threading.Thread(target=self._run, args=(write, snapshot))
        self._thread.start()

    def _run(self, write: Callable[[State], object], snapshot: State) -> None:
        try:
            write(snapshot)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise what went wrong in a save that is through, without waiting for one that is not."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until everything is on the disk; raises what went wrong on the way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, states may be saved; after it they are. An error inside wins over one of a save."""
        try:
            yield
        except BaseException:
            if self._thread is not None:
                self._thread.join()
            raise
        self.wait()

    def _snapshot(self, state: State) -> dict[str, Any]:
        copies: dict[tuple[Any, ...], Tensor] = {}  # tied weights stay tied
        room, self._room = self._room, {}
        sources: list[Tensor] = []

        def copied(value: Any, name: str) -> Any:
            if isinstance(value, Tensor):
                key = (value.data_ptr(), value.dtype, value.shape, value.stride())
                if value.numel() == 0 or key not in copies:
                    sources.append(value)
                    copies[key] = self._room[name] = _copy(value, room.pop(name, None))
                return copies[key]
            if isinstance(value, MutableMapping):
                result = copy.copy(value)  # keeps its type, and what hangs on it
                for inner in value:
                    result[inner] = copied(value[inner], f"{name}.{inner}")
                return result
            if type(value) in (list, tuple):
                return type(value)(copied(v, f"{name}.{i}") for i, v in enumerate(value))
            return value

        snapshot = {name: copied(value, name) for name, value in state.items()}
        for device in {tensor.device for tensor in sources if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return snapshot


def _copy(value: Tensor, room: Tensor | None) -> Tensor:
    """`value` on the CPU, in `room` where it fits."""
    value = value.detach()
    if room is None or (room.shape, room.dtype, room.stride()) != (
        value.shape,
        value.dtype,
        value.stride(),
    ):
        room = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return room.copy_(value, non_blocking=True)
