"""Downloads that go on where they broke off, and end in the file that was meant or in none."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srd.errors import RunFailed, UserError
from srd.files.connections import open_address
from srd.files.hashes import sha256
from srd.files.limits import LIMITS, Limits

CHUNK = 1 << 20  # bytes
TRIES = 5
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors after which another try may succeed


def download(
    url: str, target: Path, digits: str = "", check: Callable[[Path], object] | None = None,
    tries: int = TRIES, wait: float = 1.0, limits: Limits = LIMITS,
) -> str:  # fmt: skip
    """Fetch `url` into `target`; returns the file's SHA-256.

    The bytes gather in `<target>.part`, which a later call goes on with. `target` appears when the
    file is whole and checked, and an earlier one stays until then.

    Args:
        digits: the first digits of its SHA-256, or all 64.
        check: raises a UserError if the file is not the right one.
        tries: how often to go on after a broken connection.
        wait: seconds before the second try, twice as many before each further one.
        limits: how many bytes it may have, and how long all of it may take.

    Raises:
        RunFailed: the server cannot be reached, has no such file, sends a web page, too much or too
            slowly, leads to no address, or sends another file than was meant (which is removed).
    """
    part = target.with_name(target.name + ".part")
    fetch = partial(
        _fetch, url, part, tries=tries, wait=wait,
        until=time.monotonic() + limits.download_seconds, most=limits.download_bytes,
    )  # fmt: skip
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        started_with = part.stat().st_size if part.exists() else 0
        fetch()
        try:
            return _accept(url, part, target, digits, check)
        except _Wrong:
            if not started_with:
                raise
        fetch()  # perhaps the beginning that lay there was of another file
        return _accept(url, part, target, digits, check)
    except _Wrong as wrong:
        raise RunFailed(str(wrong)) from None
    except OSError as error:
        raise RunFailed(f"cannot write {target} ({error.strerror or error})") from None


class _Wrong(Exception):
    """What arrived is not the file that was meant."""


def _accept(
    url: str, part: Path, target: Path, digits: str, check: Callable[[Path], object] | None
) -> str:
    """Put a whole download in its place if it is what was meant; else remove it."""
    digest = sha256(part)
    try:
        if not digest.startswith(digits):
            raise _Wrong(
                f"{url} gave another file than it should: its SHA-256 starts with "
                f"{digest[: max(8, len(digits))]}, not {digits}; nothing was kept"
            )
        if check is not None:
            check(part)
    except UserError as error:
        part.unlink()
        raise _Wrong(
            f"{url} gave something else than it should: {error}; nothing was kept"
        ) from None
    except _Wrong:
        part.unlink()
        raise
    os.replace(part, target)
    return digest


def _fetch(url: str, part: Path, *, tries: int, wait: float, until: float, most: int) -> None:
    """Bring `part` to its full length, of at most `most` bytes, before the time `until`."""
    for left in reversed(range(tries)):
        try:
            if _continue(url, part, until, most):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            reason = " ".join(f"HTTP {error.code} {error.reason}".split())
            if error.code not in PASSING:
                raise RunFailed(f"{url}: {reason}") from None
        except urllib.error.URLError as error:
            reason = str(getattr(error.reason, "strerror", None) or error.reason)
        except (ValueError, http.client.InvalidURL) as error:  # of where it is led to
            raise RunFailed(f"{url} leads to no address ({error})") from None
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
        if time.monotonic() > until:
            break
        if left:
            time.sleep(wait * 2 ** (tries - 1 - left))
    kept = part.stat().st_size if part.exists() else 0
    more = f"; {kept:,} bytes are kept, the same command goes on from there" if kept else ""
    times = f", {tries - left} times" if left < tries - 1 else ""
    raise RunFailed(f"{url}: {reason}{times}{more}")


def _continue(url: str, part: Path, until: float, most: int) -> bool:
    """Ask for the rest of `part` and append it; whether the file is whole now."""
    have = part.stat().st_size if part.exists() else 0
    # identity: a compressed answer would have another length
    headers = {"User-Agent": "simple-recipe-distillation", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = open_address(request, until)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # there is no rest
        part.unlink()  # it is longer than the file
        return False
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise RunFailed(f"{url} gave a web page instead of a file: fetch it by hand")
        goes_on = answer.status == 206
        if goes_on and not _starts_at(answer, have):
            raise http.client.HTTPException("it sends another part than was asked for")
        if have and not goes_on:
            have = 0  # the server knows no ranges and sends everything
        length = answer.headers.get("Content-Length")
        total = have + int(length[:20]) if length and length.isdecimal() else None
        if total is not None and total > most:
            raise _too_large(url, part, most)
        with open(part, "ab" if goes_on else "wb") as file, _bar(part, have, total) as bar:
            while data := _read(answer):
                file.write(data)
                bar.update(len(data))
                if file.tell() > most:
                    raise _too_large(url, part, most)
            file.flush()
            os.fsync(file.fileno())
            have = file.tell()
    return total is None or have == total


def _too_large(url: str, part: Path, most: int) -> RunFailed:
    part.unlink(missing_ok=True)
    return RunFailed(
        f"{url} has more than {most:,} bytes, the most that is fetched; nothing was kept"
    )


def _starts_at(answer: http.client.HTTPResponse, have: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _bar(part: Path, have: int, total: int | None) -> Any:
    label = part.name.removesuffix(".part")
    return tqdm(desc=label, total=total, initial=have, unit="B", unit_scale=True, mininterval=0.5)


def _read(answer: http.client.HTTPResponse) -> bytes:
    """What has arrived; it waits for a byte, and never for a whole CHUNK."""
    try:
        return answer.read1(CHUNK)
    except OSError as error:  # of the network; those of the disk are told apart
        raise ConnectionError(str(error)) from None
