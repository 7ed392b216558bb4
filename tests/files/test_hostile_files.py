"""Files that want to be run, or to fill the memory: refused at once, by name, and without effect."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srd.errors import UserError
from srd.files.checkpoint import load_file, load_weights
from tests.files.greedy import GREEDY
from tests.files.made import (
    HOOKS,
    WEIGHTS,
    Hostile,
    as_legacy,
    as_zip,
    call,
    checkpoint,
    legacy,
    name,
    number,
    numbers,
    one_line,
    pickled,
    saved,
    storage,
    tensor,
    text,
    zipped,
)

Write = Callable[[Any], bytes]


# Calls


def attacks(marker: Path) -> dict[str, Hostile]:
    create = f"open({str(marker)!r}, 'w').close()"
    system = Hostile(os.system, f"touch {marker}")
    return {
        "system": system,
        "eval": Hostile(eval, create),
        "exec": Hostile(exec, create),
        "Popen": Hostile(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Hostile(getattr, Hostile(__import__, "os"), "system"),
        "loads": Hostile(pickle.loads, pickle.dumps(system)),
        "save": Hostile(torch.save, 1, str(marker)),
        "load": Hostile(torch.load, str(marker)),
        "__import__": Hostile(builtins.__import__, "antigravity"),
    }


ATTACKS = list(attacks(Path("x")))


@pytest.mark.parametrize("writer", [pickled, zipped, legacy])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_is_refused_by_name_and_does_nothing(
    tmp_path: Path, attack: str, writer: Write
) -> None:
    marker, path = tmp_path / "owned", tmp_path / "a.pth"
    hostile = attacks(marker)[attack]
    weights = {} if writer is pickled else WEIGHTS  # a plain pickle of tensors is refused for them
    for content in (
        hostile,
        {"model": {**weights, "x": hostile}},
        {"model": weights, "args": [hostile]},
        {"model": weights, "args": Hostile(OrderedDict, hostile)},
    ):
        path.write_bytes(writer(content))
        with pytest.raises(UserError) as caught:
            load_weights(path)
        assert not marker.exists()
        assert f"{attack}: refused" in one_line(caught, path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_refused(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "owned", tmp_path / "a.pth"
    torch.save(attacks(marker)["exec"], path, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"exec: refused"):
        load_weights(path)
    path.write_bytes(pickle.dumps(attacks(marker)["exec"], protocol))
    with pytest.raises(UserError):
        load_weights(path)
    assert not marker.exists()


def test_the_attacks_work_on_who_unpickles(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    for attack in ("system", "eval", "exec"):
        pickle.loads(pickled(attacks(marker)[attack]))
        assert marker.exists()
        marker.unlink()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": nn.Linear(1, 1)})
    with pytest.raises(UserError, match=r"Linear: refused"):
        load_weights(path)


F8 = call(name("numpy", "dtype"), text("f8"), b"\x89", b"\x88")
BYTES = call(name("_codecs", "encode"), text("\0" * 8), text("latin1"))
ARRAY = call(
    name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), numbers(0), text("b")
)

# Things that torch would build, but no checkpoint of ours or theirs holds


ODD_THINGS = {
    "_rebuild_sparse_tensor": lambda: torch.eye(2).to_sparse(),
    "_rebuild_qtensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "_rebuild_meta_tensor_no_storage": lambda: torch.empty(2, device="meta"),
    "bytearray": lambda: bytearray(b"x"),
}


@pytest.mark.parametrize("asked", ODD_THINGS)
def test_odd_things_are_refused_by_name(tmp_path: Path, asked: str) -> None:
    thing, path = ODD_THINGS[asked](), tmp_path / "a.pth"
    torch.save({"model": {**WEIGHTS, "x": thing}}, path)
    with pytest.raises(UserError, match=rf"{asked}: refused") as caught:
        load_weights(path)
    one_line(caught, path)


NUMPY_FORGED = {
    "a type without an order": name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R",
    "a number of no bytes": call(name("numpy.core.multiarray", "scalar"), F8, text("x")),
    "an array without content": ARRAY,
    "an array twice as large": ARRAY + b"(K\x01" + numbers(2) + F8 + b"\x89" + BYTES + b"tb",
    "an array of a huge size": ARRAY + b"(K\x01" + numbers(2**62, 0) + F8 + b"\x89" + BYTES + b"tb",
    "an array of texts": ARRAY + b"(K\x01" + numbers(1) + text("f8") + b"\x89" + BYTES + b"tb",
    "an array with a class of its own": call(
        name("numpy._core.multiarray", "_reconstruct"), name("torch", "Tensor"), numbers(0), text("b")
    ),
    "a type with fields": F8 + b"(K\x03" + text("<") + b"N}NJ\xff\xff\xff\xffK\x00K\x00tb",
    "a complex text": call(name("__builtin__", "complex"), text("1" * 100_000), text("")),
    "bytes of a size": call(name("__builtin__", "bytes"), number(10**13)),
    "a factory that is a call": call(name("collections", "defaultdict"), HOOKS),
    "a class that is called": call(name("numpy", "ndarray"), numbers(10**6, 10**6)),
    "a list that is called": call(name("__builtin__", "list"), text("x" * 1000)),
    "a tensor of another class": call(
        name("torch._tensor", "_rebuild_from_type_v2"), name("torch._utils", "_rebuild_tensor_v2"),
        name("torch", "Size"), b")", b"}",
    ),
    "a rebuilder by another name": call(
        name("torch._tensor", "_rebuild_from_type_v2"), name("_codecs", "encode"),
        name("torch", "Tensor"), b"(" + text("a") + text("latin1") + b"t", b"}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("forged", NUMPY_FORGED)
def test_forged_values_of_numpy_and_python(tmp_path: Path, forged: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(as_zip(checkpoint(NUMPY_FORGED[forged])))
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert "refused" in one_line(caught, path)


def test_what_is_attached_to_a_mapping_is_dropped(tmp_path: Path) -> None:
    attributes = b"}" + text("items") + text("no method") + b"s" + text("keys") + b"Nsb"
    weights = HOOKS + text("w") + tensor(storage(1), numbers(1), numbers(1)) + b"s" + attributes
    path = tmp_path / "a.pth"
    path.write_bytes(as_zip(weights, ONE))
    assert type(load_file(path)) is dict
    assert load_weights(path)["w"].tolist() == [0]


def test_what_is_attached_to_a_tensor_is_dropped(tmp_path: Path) -> None:
    hooks = HOOKS + number(0) + text("hook") + b"s"
    whole = tensor(storage(2), numbers(2), numbers(1))
    parameter = call(name("torch._utils", "_rebuild_parameter"), whole, b"\x88", hooks)
    path = tmp_path / "a.pth"
    path.write_bytes(as_zip(checkpoint(parameter), {"0": bytes(8)}))
    assert load_weights(path)["w"]._backward_hooks is None


# Files that claim too much. Each is tried in an interpreter with little memory to spare, where
# everything that writes, starts or imports anything is watched.


def deep(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1)


def laughs(levels: int = 40) -> bytes:
    """A list that holds a list ten times, which holds a list ten times, ..."""
    lists = b"]" + b"(" + b"N" * 10 + b"e" + b"q\x00"
    for level in range(1, levels):
        lists += b"](" + (b"h" + bytes([level - 1])) * 10 + b"e" + b"q" + bytes([level])
    return b"(" + lists + b"t"


def key_of_tuples(levels: int) -> bytes:
    """A dictionary with a key that is a tuple of a tuple twice, ...: its hash takes for ever."""
    return b"}" + b"N" + b"q\x00h\x00\x86" * levels + b"Ns"


ONE = {"0": bytes(4)}
BIG = numbers(10**6, 10**6)
FORGED: dict[str, bytes] = {
    "claims more than its record": as_zip(
        checkpoint(tensor(storage(10**9), numbers(10**9), numbers(1))), ONE
    ),
    "claims more than its file": as_legacy(
        checkpoint(tensor(storage(10**11, old=True), numbers(1), numbers(1))), ONE
    ),
    "many claims of the whole file": as_legacy(
        b"(" + b"".join(storage(20, key=str(i), old=True) for i in range(3)) + b"t", ONE
    ),
    "view of stride 0": as_zip(checkpoint(tensor(storage(1), numbers(10**12), numbers(0))), ONE),
    "view of stride 0, old": as_legacy(
        checkpoint(tensor(storage(1, old=True), numbers(10**12), numbers(0))), ONE
    ),
    "view past the end": as_zip(checkpoint(tensor(storage(1), numbers(1), numbers(1), 5)), ONE),
    "tensor that makes its storage grow": as_legacy(
        checkpoint(tensor(storage(1, old=True), BIG, numbers(10**6, 1))), ONE
    ),
    "sizes beyond 64 bits": as_zip(
        checkpoint(tensor(storage(1), numbers(2**62, 2**62, 0), numbers(2**70, 1, 1))), ONE
    ),
    "negative stride": as_zip(checkpoint(tensor(storage(1), numbers(1), numbers(-1))), ONE),
    "one record described twice": as_zip(
        b"(" + storage(1) + storage(1, "IntStorage") + b"t", ONE
    ),
    "record outside": as_zip(checkpoint(storage(1, key="../data.pkl")), ONE),
    "missing record": as_zip(checkpoint(storage(1, key="7")), ONE),
    "data that does not follow": as_legacy(
        checkpoint(tensor(storage(1, old=True), numbers(1), numbers(1))), {"1": bytes(4)}
    ),
    "torch.Tensor of sizes": as_zip(checkpoint(name("torch", "Tensor") + BIG + b"R")),
    "torch.FloatTensor of sizes": as_zip(checkpoint(name("torch", "FloatTensor") + BIG + b"R")),
    "storage of a size": as_zip(
        checkpoint(call(name("torch.storage", "UntypedStorage"), number(10**13)))
    ),
    "new storage of a size": as_zip(
        checkpoint(name("torch.storage", "UntypedStorage") + numbers(10**13) + b"\x81")
    ),
    "bytearray of a size": as_zip(
        checkpoint(call(name("__builtin__", "bytearray"), number(10**13)))
    ),
    "counter of a tensor": as_zip(
        checkpoint(call(name("collections", "Counter"),
                        tensor(storage(1), numbers(1), numbers(0)))), ONE
    ),
    "dictionary of a tensor": as_zip(
        checkpoint(call(name("collections", "OrderedDict"),
                        tensor(storage(1), numbers(1), numbers(0)))), ONE
    ),
    "set of tuples": as_zip(call(name("__builtin__", "set"), b"]" + numbers(1) + b"a")),
    "key of tuples": as_zip(key_of_tuples(60)),
    "key of deep tuples": as_zip(b"}" + b"N" + b"\x85" * 500_000 + b"Ns"),
    "colliding keys": as_zip(
        b"}" + b"".join(number((2**61 - 1) * 2**70 + i * (2**61 - 1)) + b"Ns" for i in range(3))
    ),
    "a codec that takes long": as_zip(
        call(name("_codecs", "encode"), text("ab" * 1000), text("punycode"))
    ),
    "a device that is none": as_zip(checkpoint(call(name("torch", "device"), text("nowhere")))),
    "billion laughs": as_zip(laughs()),
    "a list of three million": as_zip(b"](" + b"N" * 3_000_000 + b"e"),
    "lists in lists": as_zip(deep(100_000)),
    "lists in lists, old": as_legacy(deep(100_000)),
    "a list that holds itself": as_zip(b"}" + text("a") + b"]q\x00h\x00as"),
    "a text of 4 GB": as_zip(b"X\xff\xff\xff\xffabc"),
    "a text of 4 GB, old": as_legacy(b"X\xff\xff\xff\xffabc"),
    "bytes of 2**62": as_zip(b"\x8e" + (2**62).to_bytes(8, "little")),
    "a class as a value": as_zip(checkpoint(name("torch", "FloatStorage"))),
    "an extension": as_zip(b"\x82\x01"),
    "a persistent network": as_legacy(b"(" + text("module") + name("os", "system") + b"ttQ"),
    "a call of a result": as_zip(HOOKS + b")R"),
    "nothing on the stack": as_zip(b"0"),
    "marks without end": as_zip(b"(" * 1000),
}  # fmt: skip


def bombs(folder: Path) -> None:
    """Zip archives whose directories lie."""
    program = tensor(storage(10), numbers(10), numbers(1))
    honest = as_zip(checkpoint(program), {"0": bytes(40)})
    (folder / "compressed").write_bytes(
        as_zip(checkpoint(program), {"0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    )
    (folder / "compressed pickle").write_bytes(
        as_zip(b"X" + (64 << 20).to_bytes(4, "little") + bytes(64 << 20), {}, zipfile.ZIP_LZMA)
    )
    twice = io.BytesIO(honest)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("archive/DATA.pkl", b"\x80\x02" + name("os", "system") + b".")
    (folder / "two pickles").write_bytes(twice.getvalue())
    with zipfile.ZipFile(folder / "a long directory", "w") as archive:
        for number_of in range(1000):
            archive.writestr("archive/data/" + str(number_of) + "x" * 20_000, b"")
    # Python's zipfile finds the second directory, torch the first
    fine, foul = text("a" * 60), name("torch", "FloatTensor") + BIG + b"R"
    foul = foul.ljust(len(fine), b"N")
    (folder / "two archives").write_bytes(as_zip(foul) + as_zip(fine))
    (folder / "a name that goes on").write_bytes(
        honest.replace(b"archive/byteorder", b"archive/data.pkl\0")
    )
    overlapping = bytearray(as_zip(checkpoint(program), {str(i): bytes(4000) for i in range(9)}))
    first = overlapping.index(b"PK\x01\x02")  # every record of the directory at the start
    while (first := overlapping.find(b"PK\x01\x02", first + 1)) >= 0:
        overlapping[first + 20 : first + 28] = (30_000).to_bytes(4, "little") * 2
    (folder / "overlapping").write_bytes(overlapping)


GUARDED = """
import resource, sys, time
import torch
import srd.files.checkpoint
from srd.errors import UserError
from tests.files.yardstick import second
from pathlib import Path

doing = []
WATCHED = ("exec", "import", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen",
           "socket.connect", "ctypes.dlopen", "os.remove", "os.rename", "shutil.rmtree")

def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in WATCHED or writes:
        doing.append((event, *map(str, arguments[:2])))

warm = Path(sys.argv[2])
srd.files.checkpoint.load_file(warm)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)

def peak():  # in kB, of this interpreter alone: getrusage starts from the parent's
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if "VmHWM" in row)

before = peak()
second_before = second()
sys.addaudithook(watch)
took = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try:
        srd.files.checkpoint.load_file(path)
        said = "LOADED"
    except UserError as error:
        said = str(error)
    took[path.name] = (time.process_time() - started, said)
grown = peak() - before
unit = max(second_before, second())
for name, (seconds, said) in took.items():
    print(name, round(seconds / unit, 2), said, sep="\\t")
print("grown", grown // 1024, doing, sep="\\t")
"""


def test_forged_files_are_refused_in_little_memory_and_time(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    folder = tmp_path / "forged"
    folder.mkdir()
    for title, content in (FORGED | GREEDY).items():
        (folder / title).write_bytes(content)
    bombs(folder)
    honest = tmp_path / "honest.pth"
    program = tensor(storage(1), numbers(1), numbers(1))
    honest.write_bytes(as_zip(checkpoint(program), ONE))
    *rows, last = run_python("-c", GUARDED, folder, honest).splitlines()
    said = {
        title: (float(seconds), words) for title, seconds, words in (r.split("\t") for r in rows)
    }
    assert set(said) == {path.name for path in folder.iterdir()}
    for title, (seconds, words) in said.items():
        assert words.startswith(f"{folder / title} ") and len(words) < 400, (title, words)
        megabytes = (folder / title).stat().st_size / 1e6
        assert seconds < 5 * max(1, megabytes), title
    _, megabytes, did = last.split("\t")
    assert did == "[]", did
    assert int(megabytes) < 400


def test_forged_files_are_well_made(tmp_path: Path) -> None:
    """The forger's tools make files that are read when they claim no more than they have."""
    path = tmp_path / "a.pth"
    data = {"0": torch.arange(6.0).numpy().tobytes()}
    for old, write in ((False, as_zip), (True, as_legacy)):
        program = tensor(storage(6, old=old), numbers(2, 2), numbers(3, 1), 1)
        path.write_bytes(write(checkpoint(program), data))
        assert load_weights(path)["w"].tolist() == [[1, 2], [4, 5]]
    path.write_bytes(as_zip(checkpoint(b"](" + b"N" * 1000 + b"e" + b"r\xff\xff\xff\xff")))
    assert load_file(path) == {"model": {"w": [None] * 1000}}


@pytest.mark.parametrize("kind", [pytest.param("forged", marks=pytest.mark.slow), "exec"])
def test_the_command_line_refuses_them(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, path = tmp_path / "owned", tmp_path / "a.pth"
    path.write_bytes(
        {
            "forged": FORGED["claims more than its record"],
            "exec": zipped({"model": attacks(marker)["exec"]}),
        }[kind]
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "deit/main.py", "--model=tiny", "--config=configs/digits/deit.yaml",
         f"--checkpoint={path}"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"error: {path} ") and done.stderr.count("\n") == 1
    assert not marker.exists()
