from __future__ import annotations

import pytest

from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'chatsvc.db'}")
    migrate(database)
    yield database
    database.close()
