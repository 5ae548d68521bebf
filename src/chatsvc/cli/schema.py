"""``python -m chatsvc.cli.schema``: the database schema's version. The installer of kits calls it, also older ones.

``head`` prints the schema version that this release needs; ``back VERSION`` migrates this home's database back to it.
"""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    from chatsvc.settings.load import load
    from chatsvc.store.database import Database
    from chatsvc.store.migrate import head, migrate_back

    if arguments == ["head"]:
        print(head())
        return 0
    database = Database(load().store_url)
    migrate_back(database, arguments[1])
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
