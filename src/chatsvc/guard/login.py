"""A name and a password to an account. Knows nothing about tokens or HTTP.

1. Throttle: while the (name, address) has to wait, refuse without hashing.
2. A slot for one hash; few may be made at once.
3. Throttle again: what failed while we waited for the slot counts, so parallel guesses gain nothing.
4. Look the account up and verify; for an unknown one the same work is done on a dummy.
5. Count the failure or forget the failures, still in the slot; then renew the hash when its cost was changed.

Unknown account, wrong password and disabled account are one outcome.
"""

from __future__ import annotations

from sqlalchemy import select, update

from chatsvc.errors import AuthenticationFailed, PermissionRefused
from chatsvc.guard.accounts import normal_name
from chatsvc.guard.directory import Directory, LoggedIn
from chatsvc.guard.passwords import Passwords
from chatsvc.guard.principal import ClientAddress
from chatsvc.guard.throttle import LoginThrottle
from chatsvc.store.database import Database
from chatsvc.store.tables import Account

LOGIN_REFUSED = "The user name or the password is wrong."


class Login:
    """Checks passwords."""

    def __init__(
        self, database: Database, passwords: Passwords, throttle: LoginThrottle, directory: Directory | None = None
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._directory = directory

    def verify(self, name: str, password: str, address: ClientAddress) -> LoggedIn:
        """Whose password it is.

        Raises:
            AuthenticationFailed: nobody's.
            LimitExceeded: the name has to wait.
            Overloaded: too many logins at once.
        """
        known_as = normal_name(name)
        counted_as = known_as or name
        self._throttle.check(counted_as, address)  # (1)
        with self._passwords.turn():  # (2)
            self._throttle.check(counted_as, address)  # (3)
            found = self._verify_in_slot(known_as, password)  # (4)
            if found is None:
                self._throttle.failed(counted_as, address)  # (5)
                raise AuthenticationFailed("wrong user name or password", message=LOGIN_REFUSED)
            self._throttle.succeeded(counted_as, address)
        return found

    def check_throttle(self, name: str, address: ClientAddress) -> None:
        """Step 1 alone, for who wants to know before anything is recorded.

        Raises:
            LimitExceeded: the name has to wait.
        """
        self._throttle.check(normal_name(name) or name, address)

    def verify_current(self, account_name: str, password: str, address: ClientAddress) -> None:
        """Check the password of a caller who is logged in already, with the same throttle.

        Raises:
            PermissionRefused: it is not the password. The session lives on.
        """
        try:
            self.verify(account_name, password, address)
        except AuthenticationFailed:
            raise PermissionRefused("wrong current password", message="The current password is wrong.") from None

    def _verify_in_slot(self, name: str | None, password: str) -> LoggedIn | None:
        with self._database.reading() as session:
            row = session.scalar(select(Account).where(Account.name == (name or "")))
        is_local = row is not None and row.source == "local"
        matches = self._passwords.matches(password, row.password_hash if row is not None and is_local else None)
        if row is not None and is_local:
            if not matches or row.disabled_at is not None:
                return None
            self._renew(row, password)
            return LoggedIn(row.id, row.name)
        if self._directory is not None and name is not None and (row is None or row.disabled_at is None):
            return self._directory.verify(name, password)
        return None

    def _renew(self, row: Account, password: str) -> None:
        if self._passwords.is_outdated(row.password_hash):
            unchanged = (Account.id == row.id) & (Account.password_hash == row.password_hash)
            renewed = self._passwords.hash(password)
            with self._database.session() as session:
                session.execute(update(Account).where(unchanged).values(password_hash=renewed))
