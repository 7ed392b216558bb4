"""Runs an ONNX file, in a process of its own that its parent stops when it takes too long.

    python -m srd.export.onnx_process FILE_DESCRIPTOR PROVIDER THREADS BYTES

Says in JSON, a line each: that it is ready; the file's metadata; then for each batch (a line with
its shape, and float32 numbers) the shape of the logits that follow, or what is wrong. No graph is
optimised: that would run parts of it before anyone asks.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any, BinaryIO

import numpy as np
import onnxruntime

MOST_LOGITS = 100_000_000  # of a batch


def main() -> None:
    """See above."""
    descriptor, provider, threads, memory = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    if provider == "CPUExecutionProvider":  # CUDA reserves addresses that it never uses
        _limit_memory(int(memory))
    _say(replies, {"ready": True})
    try:
        with open(int(descriptor), "rb") as file:
            session = _open(file.read(), provider, int(threads))
        (name,) = [given.name for given in session.get_inputs()]
        _say(replies, {"metadata": dict(session.get_modelmeta().custom_metadata_map)})
        while line := sys.stdin.buffer.readline():
            shape = json.loads(line)["shape"]
            numbers = sys.stdin.buffer.read(4 * math.prod(shape))
            logits = _logits(session, name, np.frombuffer(numbers, np.float32).reshape(shape))
            _say(replies, {"shape": logits.shape})
            replies.write(logits.tobytes())
            replies.flush()
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        _say(replies, {"error": " ".join(str(error).split())[:160] or type(error).__name__})


def _open(content: bytes, provider: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal: others are said in JSON
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=[provider])


def _logits(session: Any, name: str, images: np.ndarray) -> np.ndarray:
    logits = session.run(None, {name: images})[0]
    if logits.ndim != 2 or len(logits) != len(images) or logits.size > MOST_LOGITS:
        raise ValueError(f"it gives {logits.shape} instead of logits for {len(images)} images")
    return np.asarray(logits, np.float32)


def _limit_memory(nbytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or nbytes < most:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, most))


def _say(replies: BinaryIO, what: dict[str, Any]) -> None:
    replies.write(json.dumps(what).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
