"""The options that all programs here have. Knows nothing about what they measure."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def default_cache() -> Path:
    """``$CHATSVC_BENCH_CACHE``, else below the user's cache directory. About 5 GB in the end."""
    chosen = os.environ.get("CHATSVC_BENCH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "chatsvc-bench"


def parser(about: str, *, has_cache: bool = True) -> argparse.ArgumentParser:
    """For a program whose docstring ``about`` begins with its command, a colon and what it does."""
    command, _, summary = about.partition("\n")[0].partition(": ")
    made = argparse.ArgumentParser(prog=command.strip("`"), description=summary)
    made.add_argument("--not-kept", action="store_true", help="only print; docs stay as they are")
    if has_cache:
        made.add_argument("--cache", type=Path, default=default_cache(), help="where models and other servers are kept")
    return made
