"""SHA-256 of files, and what file names claim about it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claimed_digits(name: str) -> str:
    """The first digits of the SHA-256 that a file's name claims; "" where it claims none.

    `regnety_160-a5fe301d.pth` follows torch.hub's custom: eight or more hexadecimal digits, the
    first ones of the hash, stand between the last dash and the suffix. A date is not meant.
    """
    found = re.search(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$", name)
    return found.group(1) if found else ""
