"""A file that is appended to: what cannot be opened, or has failed once, is not written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from chatsvc.disk.append import AppendFile, Calls, DiskFailed


def test_what_cannot_be_opened_or_has_failed_is_not_written(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(DiskFailed):
        AppendFile(tmp_path / "link")

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = AppendFile(tmp_path / "file", Calls(fdatasync=fails))
    for _ in range(2):
        with pytest.raises(DiskFailed):
            file.append(b"x")
    file.close()
