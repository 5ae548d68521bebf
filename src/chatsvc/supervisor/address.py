"""The address of a home's web process: from the configuration, and as written by the running process.

An address is ``http://HOST:PORT`` or ``unix:PATH``. The web process writes its own to ``run/address`` below the home,
because other programs do not know the PORT or the unit's environment that it was started with.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from chatsvc.disk.durable import replace_file
from chatsvc.settings.load import Settings, child_environment, environment_value, load

UNIX = "unix:"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (to connect, not to listen)


def settings_as_run() -> Settings:
    """The configuration, with PORT and HOST overriding it as for `make run`."""
    given = {"CHATSVC_SERVER__PORT": environment_value("PORT"), "CHATSVC_SERVER__HOST": environment_value("HOST")}
    return load(child_environment({name: value for name, value in given.items() if value is not None}))


def address_of(settings: Settings) -> str:
    """Where a program on this machine reaches a web process with this configuration."""
    if settings.server.socket:
        return f"{UNIX}{settings.server.socket}"
    host = _ANY.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def address_file(home: Path) -> Path:
    """Where the web process writes its address; the time of the file is when it began to listen."""
    return home / "run" / "address"


def write_address(settings: Settings) -> None:
    """Tell other programs of this home where the web process listens.

    Raises:
        OSError: the file could not be written.
    """
    path = address_file(settings.home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, address_of(settings).encode())


def running_address() -> tuple[str, Settings]:
    """The address of this home's web process, else the one it would use; and the configuration.

    A process that was killed leaves its address behind.
    """
    settings = settings_as_run()
    with contextlib.suppress(OSError):
        return address_file(settings.home).read_text(encoding="utf-8"), settings
    return address_of(settings), settings
