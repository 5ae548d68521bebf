"""An account has a key that all spellings of its name share, and its external authority; a session has its network.

Accounts whose names differ in case or width alone were possible until now. The oldest of them has the key; the others
have the key with ``#``, which no name contains, and their id appended; `chatsvc user duplicates` lists them.
"""

import unicodedata
from ipaddress import IPv6Network, ip_address

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MAX_KEY_LENGTH = 128
# Unicode's Default_Ignorable_Code_Point that a name can hold: invisible letters
_INVISIBLE = dict.fromkeys((0x115F, 0x1160, 0x3164, 0xFFA0))


def upgrade() -> None:
    """Forward."""
    op.add_column("accounts", sa.Column("name_key", sa.String(256), nullable=True))
    op.add_column("accounts", sa.Column("authority", sa.String(255), nullable=True))
    op.add_column("accounts", sa.Column("subject", sa.String(255), nullable=True))
    op.add_column("sessions", sa.Column("place", sa.String(64), nullable=True))
    _fill_in_keys(op.get_bind())
    _fill_in_places(op.get_bind())
    op.create_index("ix_accounts_name_key", "accounts", ["name_key"], unique=True)
    op.create_index("ix_accounts_subject", "accounts", ["authority", "subject"], unique=True)


def downgrade() -> None:
    """Downgrade. Drops each account's authority; its next login after an upgrade stores it again."""
    op.drop_index("ix_accounts_subject", "accounts")
    op.drop_index("ix_accounts_name_key", "accounts")
    op.drop_column("sessions", "place")
    for column in ("subject", "authority", "name_key"):
        op.drop_column("accounts", column)


def _fill_in_keys(connection: sa.Connection) -> None:
    rows = connection.execute(sa.text("SELECT id, name FROM accounts ORDER BY created_at, id")).all()
    taken: set[str] = set()
    values = []
    for row in rows:
        key = _key(row.name)
        values.append({"id": row.id, "key": f"{key}#{row.id}" if key in taken else key})
        taken.add(key)
    if values:
        connection.execute(sa.text("UPDATE accounts SET name_key = :key WHERE id = :id"), values)


def _key(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return unicodedata.normalize("NFKC", folded.translate(_INVISIBLE))[:_MAX_KEY_LENGTH]


def _fill_in_places(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE sessions SET place = address"))
    addresses = connection.scalars(sa.text("SELECT DISTINCT address FROM sessions WHERE address LIKE '%:%'")).all()
    values = [{"address": address, "place": _network(address)} for address in addresses]
    if values:
        connection.execute(sa.text("UPDATE sessions SET place = :place WHERE address = :address"), values)


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(IPv6Network((int(parsed), 64), strict=False)) if parsed.version == 6 else address
