"""What a file of weights is, told from its content and not from its suffix, and its reader."""

from __future__ import annotations

from typing import Any, NamedTuple

from srd.files.opened import OpenedFile, Refused
from srd.files.reading import legacy, zips
from srd.files.reading.legacy import read_legacy, refuse_pickle
from srd.files.reading.safetensors import looks_like_safetensors, read_safetensors
from srd.files.reading.zips import read_zip

HEAD = 1024  # bytes that show what a file is


class Content(NamedTuple):
    """Everything in a file of weights: tensors and plain containers, and a safetensors' metadata."""

    entries: Any
    metadata: dict[str, str]


def read_content(file: OpenedFile, *, checked: bool = False) -> Content:
    """Read a file of any format.

    Args:
        checked: compare the records with their checksums; of a zip archive, others have none.

    Raises:
        Refused: it is no checkpoint, is damaged, or asks for more than a checkpoint needs; or
            whatever a reader meets in a damaged file.
    """
    head = file.read(0, min(HEAD, file.size))
    if looks_like_safetensors(head):
        tensors, metadata = read_safetensors(file)
        return Content(tensors, metadata)
    if head.startswith(zips.START):
        return Content(read_zip(file, checked=checked), {})
    if head.startswith(legacy.START):
        return Content(read_legacy(file), {})
    if head.startswith(b"\x80"):
        refuse_pickle(file)
    raise Refused(what_else(head))


def what_else(head: bytes) -> str:
    """In words, what a file that is no checkpoint seems to be."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: the download or the copy failed, fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<script")):
        return (
            "is a web page, not weights (as failed downloads from cloud drives are): "
            "fetch the file again, by hand in a browser"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "is an archive (gzip, bzip2, xz or tar): unpack it, and give the file inside"
    return "is damaged or not a checkpoint (neither a torch file nor safetensors)"
