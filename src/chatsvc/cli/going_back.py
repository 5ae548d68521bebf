"""``python -m chatsvc.cli.going_back BEFORE AFTER``: records a rollback to an older release in the audit log.

The installer of kits calls it by this name before it changes anything, also installers of older releases.
"""

from __future__ import annotations

import sys

from chatsvc.cli.audit.recording import recorded
from chatsvc.settings.load import load


def main(arguments: list[str]) -> int:
    """Record the rollback; returns the exit code."""
    before, after = arguments
    with recorded(load(), "admin.release.rollback", {"before": before, "after": after}):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
