"""``python -m chatsvc.cli.going_back BEFORE AFTER``: records that an older release becomes current.

Called by the installer of kits before it changes anything; not a command for people.
"""

from __future__ import annotations

import sys

from chatsvc.cli.audit.recording import recorded
from chatsvc.settings.load import load


def main(arguments: list[str]) -> int:
    """Record it; returns the exit code."""
    before, after = arguments
    with recorded(load(), "admin.release.rollback", {"before": before, "after": after}):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
