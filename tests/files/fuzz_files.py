"""Damages files of weights, thousands of times: each is read, or refused with a UserError.

    python tests/files/fuzz_files.py FOLDER CASES SEED

Runs in an interpreter of its own, with little memory to spare, with a deadline for each case, and
with everything watched that a file may not do. Prints how many cases were read and refused.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from srd.errors import UserError
from srd.files.checkpoint import load_weights
from tests.files.made import Hostile, legacy, name, number, numbers, storage, tensor, text, zipped

DEADLINE = 10.0  # seconds for one case
SPARE = 1 << 30  # bytes of address space beyond what an idle interpreter has
FORBIDDEN = (
    "exec", "compile", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove",
    "os.rename", "os.mkdir", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
    "ctypes.dlopen", "shutil.rmtree", "webbrowser.open", "pickle.find_class",
)  # fmt: skip


def honest() -> list[bytes]:
    """Checkpoints of every kind, and one that is hostile from the start."""
    weights = OrderedDict(
        {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2).half()}
    )
    weights["norm.count"] = torch.tensor(3)
    run = {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "position": {"epoch": 3, "best": None, "done": False, "betas": (0.9, 0.999)},
    }
    marker = Hostile(os.system, "touch owned")
    contents = (weights, run, {"model": weights, "args": marker})
    return [write(c) for c in contents for write in (zipped, legacy)] + [
        safetensors.torch.save(dict(weights), {"epoch": "3"})
    ]


FILES = honest()
# What is put in at random places: opcodes and whole calls.
SNIPPETS = [
    bytes([code]) for code in b"()tRsuaebQq\x80\x81\x85\x86\x87\x88\x89NJKMXchj].}l\x8a\x8f\x93"
]
SNIPPETS += [
    name("posix", "system") + text("touch owned") + b"\x85R",
    name("__builtin__", "eval") + text("open('owned', 'w')") + b"\x85R",
    name("torch", "FloatTensor") + numbers(10**6, 10**6) + b"R",
    tensor(storage(10**10), numbers(10**10), numbers(1)),
    tensor(storage(6), numbers(10**12), numbers(0)),
    b"r" + (2**31).to_bytes(4, "little"),
    b"X" + (2**32 - 1).to_bytes(4, "little"),
    number(2**63), b"h\x00", b"j\x00\x00\x00\x00", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06",
    b"\x00" * 8, b"\xff" * 8, b"\xff" * 4, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One of FILES after one to four injuries."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(INJURIES)):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                data[at] = draw(st.integers(0, 255))
            case "number":
                data[at : at + 4] = draw(st.integers(0, 2**32 - 1)).to_bytes(4, "little")
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.sampled_from(SNIPPETS))
            case "overwrite":
                snippet = draw(st.sampled_from(SNIPPETS))
                data[at : at + len(snippet)] = snippet
            case "splice":
                other = draw(st.sampled_from(FILES))
                start = draw(st.integers(0, len(other) - 1))
                data[at:] = other[start:]
            case "swap":
                size, to = draw(st.integers(1, 100)), draw(st.integers(0, len(data) - 1))
                moved = bytes(data[at : at + size])
                del data[at : at + size]
                data[to:to] = moved
            case "rewrite":
                data = bytearray(rewritten(bytes(data), draw))
    return bytes(data)


INJURIES = ["flip", "byte", "number", "cut", "remove", "insert", "overwrite", "splice", "swap"]
INJURIES += ["rewrite"] * 6  # the only ones that damage a pickle and leave its archive in order


def rewritten(data: bytes, draw: st.DrawFn) -> bytes:
    """A zip archive written anew: records in another order, missing, damaged or compressed."""
    try:
        archive = zipfile.ZipFile(BytesIO(data))
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # zipfile raises whatever it meets in a damaged archive
        return data
    if draw(st.booleans()):
        records = draw(st.permutations(records))
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for title, content in records:
            what = draw(st.sampled_from(["keep"] * 6 + ["drop", "deflate", "twice"]))
            if title.endswith("data.pkl") and content and what == "keep":
                content = injured(bytearray(content), draw)
            if what != "drop":
                new.writestr(title, content, 8 if what == "deflate" else 0)
            if what == "twice":
                new.writestr(title.upper(), content)
    return out.getvalue()


def injured(pickle: bytearray, draw: st.DrawFn) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(pickle) - 1)))
        match draw(st.sampled_from(["byte", "insert", "remove", "repeat"])):
            case "byte":
                pickle[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                pickle[at:at] = draw(st.sampled_from(SNIPPETS))
            case "remove":
                del pickle[at : at + draw(st.integers(1, 12))]
            case "repeat":
                size = draw(st.integers(1, 60))
                pickle[at:at] = pickle[at : at + size] * draw(st.integers(1, 50))
    return bytes(pickle)


class Fuzz:
    """Loads cases one after the other, watching."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "case.pth"
        self.read = self.refused = 0
        self.watching = False
        self.did: list[tuple[str, ...]] = []
        sys.addaudithook(self.watch)
        signal.signal(signal.SIGALRM, self.late)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes what a file has done that it may not do; Python's own codecs come when first used."""
        if not self.watching:
            return
        writes = event == "open" and set(str(arguments[1])) & set("wax+")
        foreign = event == "import" and not str(arguments[0]).startswith(("encodings", "torch"))
        codec = event == "exec" and f"{os.sep}encodings{os.sep}" in arguments[0].co_filename
        if writes or foreign or (event in FORBIDDEN and not codec):
            self.did.append((event, *(str(argument)[:60] for argument in arguments[:2])))

    def late(self, *_: object) -> None:
        raise SystemExit(f"a case took more than {DEADLINE} seconds: see {self.path}")

    def load(self, data: bytes) -> None:
        """Read one file; anything but weights or a UserError ends the fuzzing."""
        self.path.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE)
        self.watching = True
        try:
            for value in load_weights(self.path).values():
                value.sum()  # reads every byte that a tensor claims
            self.read += 1
        except UserError as error:
            said = str(error)
            assert str(self.path) in said and "\n" not in said and len(said) < 500, said
            self.refused += 1
        finally:
            self.watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert not self.did, self.did


def peak_megabytes() -> int:
    """The most memory that this interpreter ever held (getrusage would count the parent's, too)."""
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in row]
    return int(line.split()[1]) >> 10


def main(folder: Path, cases: int, random_seed: int) -> None:
    os.chdir(folder)
    fuzz = Fuzz(folder)
    for data in FILES:
        fuzz.load(data)
    assert (fuzz.read, fuzz.refused) == (5, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))

    @seed(random_seed)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged())
    def every(data: bytes) -> None:
        fuzz.load(data)

    every()
    assert not (folder / "owned").exists()
    megabytes = peak_megabytes()
    print(fuzz.read, fuzz.refused, megabytes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
