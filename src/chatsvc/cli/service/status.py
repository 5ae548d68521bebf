"""``chatsvc status``: asks the running service of CHATSVC_HOME whether it serves, and its engine what it does."""

from __future__ import annotations

import contextlib
import select
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatsvc.cli.output import json_option, print_json

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """What ``--json`` prints. Times are UTC; what could not be found out is None."""

    serving: bool
    reason: str | None
    address: str
    since: str | None = None
    model: str | None = None
    model_since: str | None = None
    num_running: int | None = None
    max_num_seqs: int | None = None
    audit_log: str | None = None


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Tell whether the running service serves; its model, queue and audit log.

    Asks the service of CHATSVC_HOME, wherever it listens. Exit code 1 if it does not serve.
    """
    status = _ask()
    if as_json:
        print_json(asdict(status))
    else:
        click.echo("\n".join(_lines(status)))
    raise click.exceptions.Exit(0 if status.serving else 1)


def _ask() -> Status:
    from chatsvc.supervisor.address import address_file, running_address
    from chatsvc.supervisor.probe import get

    address, settings = running_address()
    response = get(address, "/healthz")
    if response is None:
        return Status(serving=False, reason=f"nothing answers at {address}", address=address)
    engine = _ask_engine(settings.engine_socket)
    status = Status(response.is_success, None, address, _time_of(address_file(settings.home)), **engine)
    if response.is_success:
        return replace(status, audit_log="writable")
    if response.status_code == 403:
        reason = "this machine is not in guard.allowed_networks, so only the engine could be asked"
        return replace(status, serving=bool(engine), reason=reason)
    reason = _reason(response)
    return replace(status, reason=reason, audit_log="not writable" if reason.startswith("the audit log") else None)


def _ask_engine(socket_path: Path) -> dict[str, Any]:
    """The fields of :class:`Status` that the engine knows; empty if it does not answer."""
    from chatsvc.engine.protocol import Heartbeat, Hello, decode_to_web
    from chatsvc.engine.sockets import Connection, connect

    found: dict[str, Any] = {}
    deadline = time.monotonic() + _TIMEOUT_S
    with (
        contextlib.suppress(OSError),
        contextlib.closing(Connection(connect(socket_path), max_unsent_bytes=1)) as engine,
    ):
        while not engine.broken and time.monotonic() < deadline:
            select.select([engine.sock], [], [], _TIMEOUT_S)
            for frame in map(decode_to_web, engine.receive()):  # an engine greets every client with both
                if isinstance(frame, Hello):
                    found |= {"model": frame.card.name, "max_num_seqs": frame.max_num_seqs}
                elif isinstance(frame, Heartbeat):
                    found["num_running"] = frame.num_running
            if len(found) == 3:
                return {**found, "model_since": _time_of(socket_path)}
    return {}


def _time_of(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))
    return None


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["reason"])
    except (ValueError, KeyError, TypeError):
        return f"the answer (status {response.status_code}) is not that of chatsvc: another program may listen there"


def _lines(status: Status) -> list[str]:
    """The status in plain words."""
    since = f" since {status.since}" if status.since else ""
    verdict = f"serving at {status.address}{since}" if status.serving else "NOT SERVING"
    lines = [f"chatsvc    {verdict}{f': {status.reason}' if status.reason else ''}"]
    if status.model is not None:
        lines.append(f"model      {status.model}, loaded {status.model_since}")
        is_full = status.num_running == status.max_num_seqs
        queue = "new requests wait" if is_full else "no request waits"
        lines.append(f"queue      {status.num_running} of {status.max_num_seqs} slots in use; {queue}")
    if status.audit_log is not None:
        lines.append(f"audit log  {status.audit_log}")
    return lines
