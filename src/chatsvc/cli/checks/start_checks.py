"""Checks before a start, shared by `config check`, `doctor`, `serve` and `quickstart`.

Loading the configuration has checked each value already. These checks depend on the machine: files, directories and
addresses that the configuration names. They connect to nothing and change nothing.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url

from chatsvc.errors import ConfigurationInvalid, OperatorError
from chatsvc.models.seal.sealed import read_kek
from chatsvc.settings.load import Settings
from chatsvc.supervisor import cgroup
from chatsvc.wiring import audit_options, guard_options, ldap_directory, oidc_provider

_OTHER_TASKS = 48  # of the web process beside its request threads, rounded up
_MAX_SOCKET_PATH_BYTES = 100  # a sockaddr_un holds 107 bytes, and gunicorn adds to the path


def problems(settings: Settings) -> list[str]:
    """Every reason why `chatsvc serve` could not start or be used, each with its remedy."""
    checks = (_allow_list, _files, _directories, _listener, _packages)
    return [problem for check in checks for problem in check(settings)]


def require(settings: Settings) -> None:
    """Refuse to start if there is a problem.

    Raises:
        ConfigurationInvalid: with every problem.
    """
    if found := problems(settings):
        raise ConfigurationInvalid(found)


def warnings(settings: Settings) -> list[str]:
    """What does not keep the service from starting, but its operator should know."""
    found = list(_threads(settings))
    if settings.server.socket or _is_loopback(settings.server.host):
        return found
    host, configuration = settings.server.host, settings.home / "chatsvc.toml"
    unencrypted = (
        f"server.host = {host}: passwords and prompts cross the network unencrypted, and slow clients can hold the "
        "service up. For anything but a trial, put nginx with TLS in front (`chatsvc config nginx`)."
    )
    found.append(unencrypted)
    if all(network.is_loopback for network in settings.guard.allowed_networks):
        found.append(
            f"server.host = {host} accepts other machines, but guard.allowed_networks lists only this one: add the "
            f"networks of your clients in {configuration}."
        )
    return found


def _threads(settings: Settings) -> Iterator[str]:
    wanted, allowed = settings.server_threads + _OTHER_TASKS, cgroup.max_tasks()
    if allowed < wanted:
        yield (
            f"The control group allows {allowed} processes and threads, but server.threads needs {wanted}: raise "
            "TasksMax in the systemd unit or pids_limit in compose.yaml, or lower limits.max_waiting."
        )


def _allow_list(settings: Settings) -> Iterator[str]:
    if not settings.guard.allowed_networks:
        yield (
            "guard.allowed_networks is empty, so nobody could connect: list the networks of your clients in "
            f'{settings.home / "chatsvc.toml"}, such as allowed_networks = ["10.0.0.0/8"] below [guard].'
        )


def _files(settings: Settings) -> Iterator[str]:
    """Files that the service reads."""
    named = {
        "audit.auditor_key_file": settings.audit.auditor_key_file,
        "audit.witness_peer_ca_file": settings.audit.witness_peer_ca_file,
        "audit.witnessed_keys_file": settings.audit.witnessed_keys_file,
        "ldap.ca_file": settings.ldap.ca_file,
        "oidc.ca_file": settings.oidc.ca_file,
    }
    for key, path in named.items():
        if path is not None and (problem := _unreadable(path)):
            yield f"{key}: {path}: {problem}"
    if settings.models.kek_file is not None:
        try:
            read_kek(settings.models.kek_file)
        except OperatorError as error:
            yield f"models.kek_file: {error.message}"


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror
    return None


def _directories(settings: Settings) -> Iterator[str]:
    """Directories that the service writes to: whether they exist or can be made."""
    named = {
        "CHATSVC_HOME": settings.home,
        "audit.directory": settings.audit_directory,
        "audit.second_directory": settings.audit.second_directory,
        "server.socket": settings.server.socket.parent if settings.server.socket else None,
        **{f"audit.witness_files: {path}": path.parent for path in settings.audit.witness_files},
    }
    database = make_url(settings.store_url)
    if database.get_backend_name() == "sqlite" and database.database:
        named["store.url"] = Path(database.database).parent
    for key, directory in named.items():
        if directory is not None and (problem := _unwritable(directory)):
            yield f"{key}: {directory}: {problem}"


def _unwritable(directory: Path) -> str | None:
    nearest = directory.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a directory"
    return None if os.access(nearest, os.W_OK | os.X_OK) else "this account cannot write there"


def _listener(settings: Settings) -> Iterator[str]:
    path = settings.server.socket
    if path is not None:
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            yield f"server.socket: {path} is longer than {_MAX_SOCKET_PATH_BYTES} bytes; choose a shorter path"
        return
    try:
        socket.getaddrinfo(settings.server.host, settings.server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield f"server.host: {settings.server.host}: {error.strerror}; write an address of this machine"


def _packages(settings: Settings) -> Iterator[str]:
    """Missing packages for the configured database, Redis, directory and provider; none of them is contacted."""
    for make in (audit_options, guard_options, ldap_directory, oidc_provider):
        try:
            make(settings)
        except OperatorError as error:
            yield error.message


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
