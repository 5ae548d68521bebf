"""A name and a password to an account. Knows nothing about tokens or HTTP.

1. Throttle: while the (name, address) has to wait, refuse without hashing.
2. A slot for one hash; few may be made at once.
3. Throttle again: what failed while we waited for the slot counts, so parallel guesses gain nothing.
4. Look the account up and verify; for an unknown one the same work is done on a dummy.
5. Renew the hash when its cost was changed. Count the failure or forget the failures, still in the slot.

Who is no local account is asked of the directory, if there is one, in a slot of another kind and with (3) again: a
directory that hangs must not take the slots that the local administrator needs. The directory says whom a name means
before it tries the password, and that person is throttled as well, however the name is written.

Unknown account, wrong password and disabled account are one outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update

from chatsvc.errors import AuthenticationFailed, PermissionRefused
from chatsvc.guard.accounts.finding import find_named
from chatsvc.guard.accounts.names import MAX_TYPED_NAME
from chatsvc.guard.accounts.passwords import Passwords, Turns
from chatsvc.guard.accounts.throttle import LoginThrottle
from chatsvc.guard.principal import ClientAddress
from chatsvc.guard.providers.directory import Directory, LoggedIn, Person
from chatsvc.store.database import Database
from chatsvc.store.tables import Account

LOGIN_REFUSED = "The user name or the password is wrong."

_MAX_DIRECTORY_PARALLEL = 8
_MAX_DIRECTORY_WAITING = 32
_MAX_DIRECTORY_WAIT_S = 10.0


class Login:
    """Checks passwords."""

    def __init__(
        self, database: Database, passwords: Passwords, throttle: LoginThrottle, directory: Directory | None = None
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._directory = directory
        self._directory_turns = Turns(_MAX_DIRECTORY_PARALLEL, _MAX_DIRECTORY_WAITING, _MAX_DIRECTORY_WAIT_S)

    def verify(self, name: str, password: str, address: ClientAddress) -> LoggedIn:
        """Whose password it is.

        Raises:
            AuthenticationFailed: nobody's.
            LimitExceeded: the name has to wait.
            Overloaded: too many logins at once.
        """
        counted = [name]
        self._throttle.check(name, address)  # (1)
        with self._passwords.turn():  # (2)
            self._throttle.check(name, address)  # (3)
            row = self._row(name)
            is_local = row is not None and row.source == "local"
            found = self._verify_local(row if is_local else None, password)  # (4)
            if is_local or self._directory is None:
                return self._counted(found, counted, address)  # (5)

        def admit(person: Person) -> None:
            self._throttle.check(person.key, address)
            counted.append(person.key)

        with self._directory_turns.turn():
            self._throttle.check(name, address)
            refusal = None
            try:
                is_asked = _can_be_a_name(name) and (row is None or row.disabled_at is None)
                found = self._directory.verify(name, password, admit) if is_asked else None
            except AuthenticationFailed as error:
                refusal = error.reason
            return self._counted(found, counted, address, refusal)

    def check_throttle(self, name: str, address: ClientAddress) -> None:
        """Step 1 alone, for who wants to know before anything is recorded.

        Raises:
            LimitExceeded: the name has to wait.
        """
        self._throttle.check(name, address)

    def verify_current(self, account_name: str, password: str, address: ClientAddress) -> None:
        """Check the password of a caller who is logged in already, with the same throttle.

        Raises:
            PermissionRefused: it is not the password. The session lives on.
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
        """Count a failure, or forget the failures, under every name that the login has."""
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
    """Whether a directory is asked for it: short, and nothing that is no text."""
    return 0 < len(name) <= MAX_TYPED_NAME and name.isprintable()
