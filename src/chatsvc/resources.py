"""Finds the files for operators (``config/``, ``nginx/`` …) in the installed wheel or in the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_path(relative: str) -> Path:
    """The path of a file for operators, such as ``config/chatsvc.toml``.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for base in (_PACKAGE / "_data", _PACKAGE.parent.parent):
        if (base / relative).exists():
            return base / relative
    raise FileNotFoundError(f"{relative} is missing from this installation; install chatsvc again")
