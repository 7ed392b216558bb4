"""Files are what the digits in their names claim."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from srd.errors import UserError
from srd.files.hashes import verify


def test_a_file_is_what_its_name_claims(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    for name in (f"regnety-{digest[:8]}.pth", f"a-b_{digest[:4]}-{digest}.pth", "regnety.pth"):
        path = tmp_path / name
        path.write_bytes(b"weights")
        assert verify(path) == digest


def test_a_file_that_is_not_what_its_name_claims(tmp_path: Path) -> None:
    path = tmp_path / "regnety_160-a5fe301d.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError) as caught:
        verify(path)
    assert all(part in str(caught.value) for part in (str(path), "a5fe301d", digest[:8]))


@pytest.mark.parametrize("name", ["resnet-best.pth", "run-2024.pth", "teacher-epoch0099.pth"])
def test_other_words_in_a_name_claim_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    verify(tmp_path / name)


def test_a_missing_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher weights at"):
        verify(tmp_path / "regnety_160-a5fe301d.pth")
