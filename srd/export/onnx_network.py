"""ONNX files, of ours and of strangers: run in another process, within limits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from srd.errors import UserError
from srd.export.classifier import Classifier
from srd.export.description import exported_with
from srd.files.limits import LIMITS, Limits
from srd.files.opened import OpenedFile, Refused, open_once
from srd.installed import need_extra
from srd.printable import printable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
PROCESS = "srd.export.onnx_process"


class OnnxNetwork(nn.Module):
    """An ONNX file behind the interface of a network: images (B, 3, S, S) to logits (B, C).

    `metadata` is what the file says about itself.

    Raises:
        UserError: no such file, not ONNX, one that takes too much time or memory, or no onnxruntime
            (for CUDA, where that is asked for). Calling it may raise the same.
    """

    def __init__(self, path: Path, device: str = "cpu", limits: Limits = LIMITS) -> None:
        super().__init__()
        need_extra("export", "onnxruntime", what="ONNX files")
        import onnxruntime

        if not os.path.isfile(path):
            raise UserError(f"no ONNX file at {path}")
        if PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise UserError(
                "this onnxruntime has no CUDA: pip install onnxruntime-gpu, or --device cpu"
            )
        self.path, self.limits = path, limits
        try:
            with open_once(path) as file:
                if file.size > limits.onnx_bytes:
                    raise Refused(f"has more than {limits.onnx_bytes:,} bytes")
                self.process = _start(file, PROVIDERS[device], limits)
                weakref.finalize(self, _stop, self.process)
                self._answer(limits.onnx_start_seconds)
                seconds = limits.onnx_load_seconds + file.size / 20e6
        except (OSError, Refused) as error:
            raise UserError(f"{path} cannot be read as an ONNX file ({error})") from None
        self.metadata: dict[str, str] = self._answer(seconds)["metadata"]

    def forward(self, images: Tensor) -> Tensor:
        seconds = self.limits.onnx_picture_seconds * len(images)
        stdin, stdout = (cast(Any, pipe) for pipe in (self.process.stdin, self.process.stdout))
        with _Deadline(self.process, seconds):
            with suppress(OSError):  # it has ended: what it said last is read below
                stdin.write(json.dumps({"shape": images.shape}).encode() + b"\n")
                stdin.write(images.float().cpu().contiguous().numpy())
                stdin.flush()
            shape = self._answer(seconds)["shape"]
            numbers = bytearray(stdout.read(4 * math.prod(shape)))
        if len(numbers) != 4 * math.prod(shape):
            raise self._ended(seconds)
        return torch.frombuffer(numbers, dtype=torch.float32).view(shape)

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line that the process says, within so many seconds."""
        with _Deadline(self.process, seconds):
            line = cast(Any, self.process.stdout).readline(LIMITS.description_bytes)
        if not line.endswith(b"\n"):
            raise self._ended(seconds)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            reason = printable(answer["error"])
            raise UserError(f"{self.path} is damaged or not an ONNX file ({reason})")
        return answer

    def _ended(self, seconds: float) -> UserError:
        return UserError(
            f"{self.path} takes more memory than {self.limits.onnx_memory >> 30} GiB and four times "
            f"the file, or more than {seconds:.3g} seconds: stopped"
        )


class _Deadline:
    """Kills a process unless the `with` block is left before so many seconds."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.timer = threading.Timer(seconds, process.kill)
        self.timer.daemon = True

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()


def _start(file: OpenedFile, provider: str, limits: Limits) -> subprocess.Popen[bytes]:
    """The process, which gets the file as it is open here."""
    descriptor, memory = file.raw.fileno(), limits.onnx_memory + 4 * file.size
    arguments = (descriptor, provider, torch.get_num_threads(), memory)
    paths = [path or os.getcwd() for path in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", PROCESS, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,), env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def open_onnx(path: Path, device: str = "cpu") -> Classifier:
    """A classifier from an ONNX file that was exported here.

    Raises:
        UserError: as `OnnxNetwork`, or the file does not say how to feed it.
    """
    network = OnnxNetwork(path, device)
    if (description := exported_with(network.metadata, path)) is None:
        raise UserError(
            f"{path} does not say how its images are to be prepared: only ONNX files written by "
            "srd export do"
        )
    return Classifier(network, description, path.stem)
