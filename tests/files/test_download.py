"""Downloads: whole and checked, or not there; broken ones go on."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from srd.errors import RunFailed, UserError
from srd.files.download import download
from srd.files.limits import Limits
from tests.files.servers import serving

DATA = random.Random(0).randbytes(5000)
DIGITS = hashlib.sha256(DATA).hexdigest()


def fetched(tmp_path: Path, digits: str = DIGITS, **habits: Any) -> tuple[list[Any], str]:
    """The ranges that were asked for, and the SHA-256 that came out."""
    with serving({"/a.pth": DATA}, **habits) as server:
        found = download(f"{server.address}/a.pth", tmp_path / "new/a.pth", digits, wait=0.001)
        assert os.listdir(tmp_path / "new") == ["a.pth"]
        assert (tmp_path / "new/a.pth").read_bytes() == DATA
        return [asked for _, _, asked in server.requests], found


def refused(tmp_path: Path, digits: str = DIGITS, **habits: Any) -> str:
    """What a download that fails says; no file is left under the name."""
    with serving({"/a.pth": DATA}, **habits) as server, pytest.raises(RunFailed) as caught:
        download(f"{server.address}/a.pth", tmp_path / "a.pth", digits, wait=0.001)
    assert not (tmp_path / "a.pth").exists()
    return str(caught.value)


def test_a_file_is_fetched(tmp_path: Path) -> None:
    assert fetched(tmp_path) == ([None], DIGITS)
    assert fetched(tmp_path, digits=DIGITS[:8]) == ([None], DIGITS)
    assert fetched(tmp_path, digits="") == ([None], DIGITS)


def test_a_broken_download_goes_on(tmp_path: Path) -> None:
    ranges, _ = fetched(tmp_path, breaks=3)
    assert ranges == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    assert fetched(tmp_path, breaks=2, ranges=False)[0] == [None, "bytes=1000-", "bytes=1000-"]


def test_errors_that_pass_are_tried_again(tmp_path: Path) -> None:
    assert len(fetched(tmp_path, errors=[503, 429, 500])[0]) == 4


def test_a_later_call_goes_on(tmp_path: Path) -> None:
    said = refused(tmp_path, breaks=5, piece=100)
    assert "broke off, 5 times" in said and "500 bytes are kept" in said
    (tmp_path / "new").mkdir()
    part = (tmp_path / "a.pth.part").rename(tmp_path / "new/a.pth.part")
    part.write_bytes(DATA[:4321])
    assert fetched(tmp_path)[0] == ["bytes=4321-"]


def test_a_part_that_is_whole_is_taken(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.pth.part").write_bytes(DATA)
    assert fetched(tmp_path)[0] == ["bytes=5000-"]


@pytest.mark.parametrize("old", [b"x" * 100, b"x" * 5000, b"x" * 6000])
def test_the_rest_of_another_file_is_not_taken(tmp_path: Path, old: bytes) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.pth.part").write_bytes(old)
    assert fetched(tmp_path)[0][-1] is None


def test_another_file_than_was_meant(tmp_path: Path) -> None:
    said = refused(tmp_path, digits="0123abcd")
    assert DIGITS[:8] in said and "0123abcd" in said
    assert os.listdir(tmp_path) == []


def test_an_earlier_file_stays_until_the_new_one_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"old")
    with serving({"/a.pth": DATA}) as server:
        with pytest.raises(RunFailed):
            download(f"{server.address}/a.pth", tmp_path / "a.pth", "00", wait=0.001)
        assert (tmp_path / "a.pth").read_bytes() == b"old"
        download(f"{server.address}/a.pth", tmp_path / "a.pth", wait=0.001)
        assert (tmp_path / "a.pth").read_bytes() == DATA


def test_a_file_that_fails_its_check(tmp_path: Path) -> None:
    def no(path: Path) -> None:
        raise UserError(f"{path.name} is not what it should be")

    with serving({"/a.pth": DATA}) as server, pytest.raises(RunFailed, match="what it should be"):
        download(f"{server.address}/a.pth", tmp_path / "a.pth", check=no)
    assert os.listdir(tmp_path) == []


def test_a_web_page(tmp_path: Path) -> None:
    said = refused(tmp_path, kind="text/html; charset=utf-8")
    assert "web page" in said and "by hand" in said
    assert os.listdir(tmp_path) == []


def test_no_such_file(tmp_path: Path) -> None:
    with serving({}) as server:
        with pytest.raises(RunFailed, match="HTTP 404"):
            download(f"{server.address}/a.pth", tmp_path / "a.pth")
        assert len(server.requests) == 1


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.pth"
        with pytest.raises(RunFailed, match="Connection refused, 2 times"):
            download(url, tmp_path / "a.pth", tries=2, wait=0.001)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving({"/a.pth": DATA}) as server, pytest.raises(RunFailed, match="cannot write"):
        download(f"{server.address}/a.pth", tmp_path / "file/a.pth")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with serving({"/a.pth": DATA}) as server, pytest.raises(RunFailed, match="more than 4,999"):
        limits = Limits(download_bytes=4999)
        download(f"{server.address}/a.pth", tmp_path / "a.pth", limits=limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "limits, told",
    [(Limits(download_bytes=10**5), "more than 100,000 bytes, the most"),
     (Limits(download_seconds=0.3), "(it takes too long|timed out); [0-9,]+ bytes are kept")],
)  # fmt: skip
def test_an_answer_that_never_ends(tmp_path: Path, limits: Limits, told: str) -> None:
    with serving({"/a.pth": DATA}, endless=True) as server, pytest.raises(RunFailed, match=told):
        download(f"{server.address}/a.pth", tmp_path / "a.pth", limits=limits, wait=0.001)
    assert os.listdir(tmp_path) == (["a.pth.part"] if "kept" in told else [])


@pytest.mark.parametrize("habits", [{"drips": True}, {"leads": "/b.pth"}])
def test_headers_and_redirects_that_never_end(tmp_path: Path, habits: dict[str, Any]) -> None:
    """One byte now and then is no sign of life; a page that leads elsewhere is not read."""
    with serving({}, **habits) as server, pytest.raises(RunFailed) as caught:
        limits = Limits(download_seconds=0.3)
        download(f"{server.address}/a.pth", tmp_path / "a.pth", limits=limits, wait=0.001)
    assert os.listdir(tmp_path) == []
    told = "it takes too long|timed out" if "drips" in habits else "infinite loop"
    assert re.search(told, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["http://[::1/x", "file:///etc/passwd", "http://a b/", "gopher://x/", "ftp://127.0.0.1/x",
     "http://" + "a" * 70 + ".b/", "/a.pth", "http:///x"],
)  # fmt: skip
def test_a_redirect_to_nowhere(tmp_path: Path, place: str) -> None:
    habits = {"errors": [302] * 20, "headers": {"Location": place}}
    with serving({}, **habits) as server, pytest.raises(RunFailed) as caught:
        download(f"{server.address}/a.pth", tmp_path / "a.pth", wait=0.001, tries=2)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_an_answer_that_is_none_is_one_line(tmp_path: Path) -> None:
    """Not HTTP; and a part of the file that was not asked for."""
    for answer, told in ((b"\xff\n\x1b[31m garbage\n", "3 times"), (PART, "another part")):
        with answering(answer) as address, pytest.raises(RunFailed) as caught:
            download(f"{address}/a.pth", tmp_path / "a.pth", tries=3, wait=0.001)
        assert told in str(caught.value) and "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())


PART = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3\r\n\r\nabc"
)


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that says the same to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with listening.accept()[0] as connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
