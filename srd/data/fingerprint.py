"""What tells one set of training images from another, wherever it lies."""

from __future__ import annotations

import hashlib
import os

from srd.data.image_source import BROKEN_IMAGE, LabelledSource
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small

SAMPLED = 64  # images that are looked into


def fingerprint(source: LabelledSource) -> str:
    """A SHA-256 of the images' names (without the folder that they share), sizes and classes.

    Of 64 images, spread evenly, the content counts too: the files' bytes, or the pixels of images
    that are no files.
    """
    digest = hashlib.sha256()
    names = [source.name(index) for index in range(len(source))]
    files = os.path.isfile(names[0])
    start = len(os.path.commonpath(names)) if files and len(names) > 1 else 0
    for name, target in zip(names, source.targets.tolist(), strict=True):
        size = _size(name) if files else 0
        digest.update(f"{name[start:]}\0{size}\0{target}\n".encode(errors="surrogateescape"))
    every = -(-len(names) // SAMPLED)
    for index in range(0, len(names), every):
        digest.update(_content(source, index, names[index] if files else None))
    return digest.hexdigest()


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError:
        return -1


def _content(source: LabelledSource, index: int, file: str | None) -> bytes:
    try:
        if file is not None:
            return hashlib.sha256(read_small(file, LIMITS.picture_bytes)).digest()
        return hashlib.sha256(source.load(index)[0].tobytes()).digest()
    except (*BROKEN_IMAGE, Refused):  # told when it is trained on
        return b"broken"
