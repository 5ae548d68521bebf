"""Checks a name and a password, here or at the directory. Knows nothing about tokens or HTTP.

1. Throttle: refuse during a wait, without hashing.
2. Take a slot for hashing; there are few.
3. Throttle again: failures counted during the wait for the slot apply, so parallel guesses gain nothing.
4. Look up the account and verify the password; for an unknown account, hash a dummy.
5. If the cost parameters have changed, rehash. Count the failure or reset the count, while still holding the slot.

A name without a local account is passed to the directory, if there is one. That takes a slot of another kind, so a
hanging directory cannot use up the slots a local administrator needs; step 3 is repeated in it. The directory finds
the person before it tries the password, and the person is throttled as well, however the name was written.

Unknown account, wrong password and disabled account have the same outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update

from chatsvc.errors import AuthenticationFailed, PermissionRefused
from chatsvc.guard.accounts.external import Directory, LoggedIn, Person
from chatsvc.guard.accounts.lookup import find_named
from chatsvc.guard.accounts.names import MAX_TYPED_NAME
from chatsvc.guard.accounts.passwords import Passwords, Slots
from chatsvc.guard.accounts.throttle import LoginThrottle
from chatsvc.guard.principal import ClientAddress
from chatsvc.store.database import Database
from chatsvc.store.tables import Account

LOGIN_REFUSED = "The user name or the password is wrong."

_MAX_DIRECTORY_PARALLEL = 8
_MAX_DIRECTORY_WAITING = 32
_MAX_DIRECTORY_WAIT_S = 10.0


class Login:
    """Checks passwords of local accounts and, if given, of a directory."""

    def __init__(
        self, database: Database, passwords: Passwords, throttle: LoginThrottle, directory: Directory | None = None
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._directory = directory
        self._directory_slots = Slots(_MAX_DIRECTORY_PARALLEL, _MAX_DIRECTORY_WAITING, _MAX_DIRECTORY_WAIT_S)

    def verify(self, name: str, password: str, address: ClientAddress) -> LoggedIn:
        """The account of that name and password.

        Raises:
            AuthenticationFailed: unknown account, wrong password or disabled account.
            LimitExceeded: the login is throttled.
            Overloaded: too many logins at once.
            IdentityUnavailable: the directory cannot be reached.
        """
        counted = [name]
        self._throttle.check(name, address)  # (1)
        with self._passwords.slot():  # (2)
            self._throttle.check(name, address)  # (3)
            row = self._row(name)
            is_local = row is not None and row.source == "local"
            found = self._verify_local(row if is_local else None, password)  # (4)
            if is_local or self._directory is None:
                return self._counted(found, counted, address)  # (5)

        def admit(person: Person) -> None:
            self._throttle.check(person.key, address)
            counted.append(person.key)

        with self._directory_slots.slot():
            self._throttle.check(name, address)
            refusal = None
            try:
                is_asked = _can_be_a_name(name) and (row is None or row.disabled_at is None)
                found = self._directory.verify(name, password, admit) if is_asked else None
            except AuthenticationFailed as error:
                refusal = error.reason
            return self._counted(found, counted, address, refusal)

    def check_throttle(self, name: str, address: ClientAddress) -> None:
        """Step 1 alone, for callers that need the answer before they write a record.

        Raises:
            LimitExceeded: the login is throttled.
        """
        self._throttle.check(name, address)

    def verify_current(self, account_name: str, password: str, address: ClientAddress) -> None:
        """Check the password of a caller who is logged in, under the same throttle.

        Raises:
            PermissionRefused: the password is wrong; the session continues.
            LimitExceeded, Overloaded, IdentityUnavailable: see :meth:`verify`.
        """
        try:
            self.verify(account_name, password, address)
        except AuthenticationFailed:
            raise PermissionRefused("wrong current password", message="The current password is wrong.") from None

    def _row(self, name: str) -> Account | None:
        with self._database.reading() as session:
            return find_named(session, name)

    def _verify_local(self, row: Account | None, password: str) -> LoggedIn | None:
        matches = self._passwords.matches(password, row.password_hash if row is not None else None)
        if row is None or not matches or row.disabled_at is not None:
            return None
        self._renew(row, password)
        return LoggedIn(row.id, row.name)

    def _counted(
        self, found: LoggedIn | None, counted: Sequence[str], address: ClientAddress, refusal: str | None = None
    ) -> LoggedIn:
        """Count a failure or reset the count, under each name of the person who logs in."""
        if found is None:
            for name in counted:
                self._throttle.failed(name, address)
            raise AuthenticationFailed(refusal or "wrong user name or password", message=LOGIN_REFUSED)
        for name in counted:
            self._throttle.succeeded(name, address)
        return found

    def _renew(self, row: Account, password: str) -> None:
        if self._passwords.is_outdated(row.password_hash):
            unchanged = (Account.id == row.id) & (Account.password_hash == row.password_hash)
            renewed = self._passwords.hash(password)
            with self._database.session() as session:
                session.execute(update(Account).where(unchanged).values(password_hash=renewed))


def _can_be_a_name(name: str) -> bool:
    """Whether the directory is asked about it: printable and short."""
    return 0 < len(name) <= MAX_TYPED_NAME and name.isprintable()
