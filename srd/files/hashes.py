"""SHA-256 of files, and what file names claim about it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from srd.errors import UserError


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claimed_digits(name: str) -> str:
    """The first digits of the SHA-256 that a file's name claims; "" where it claims none.

    `regnety_160-a5fe301d.pth` follows torch.hub's custom: eight or more hexadecimal digits, the
    first ones of the hash, stand between the last dash and the suffix. A date is not meant.
    """
    match = re.search(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$", name)
    return match.group(1) if match else ""


def verify(path: str | Path) -> str:
    """The SHA-256 of a weights file, checked against the digits in its name where it has any.

    Raises:
        UserError: no such file, or the digits differ.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no teacher weights at {path}")
    return check_claim(path, sha256(path))


def check_claim(path: Path, digest: str) -> str:
    """`digest`, a file's SHA-256; a UserError where the digits in the file's name are others."""
    claimed = claimed_digits(path.name)
    if not digest.startswith(claimed):
        raise UserError(
            f"{path} is not the file its name claims: its SHA-256 starts with {digest[:8]}, not "
            f"{claimed[:8]}; download it again"
        )
    return digest
