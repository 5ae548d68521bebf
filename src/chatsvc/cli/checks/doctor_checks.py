"""The checks of ``chatsvc doctor``. Each yields findings, and a finding that is not good names its remedy.

Knows nothing about how findings are printed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from chatsvc.cli.checks import start_checks
from chatsvc.cli.models.smoke_test import lacks_key
from chatsvc.cli.service.serve import require_free_port
from chatsvc.disk import pidfile
from chatsvc.errors import ChatsvcError, OperatorError
from chatsvc.settings.load import Settings
from chatsvc.supervisor import cgroup
from chatsvc.wiring import examine_model, model_store

Level = Literal["good", "warning", "fatal"]

_LEAST_PYTHON = (3, 11)
_LEAST_DISK_BYTES = 2 * 1024**3
_LEAST_MEMORY_BYTES = 1024**3
_RELEASED_AFTER = 1_767_225_600  # 2026-01-01: a clock before that is wrong
_MODE_OF_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``remedy`` is empty if the level is good."""

    check: str
    level: Level
    message: str
    remedy: str = ""


def python() -> Iterator[Finding]:
    """The version of Python."""
    version = platform.python_version()
    if sys.version_info[:2] < _LEAST_PYTHON:
        yield Finding("python", "fatal", f"Python {version}", "Install Python 3.11 or newer, then recreate the .venv.")
    else:
        yield Finding("python", "good", f"Python {version}")


def packages(distribution: str = "chatsvc") -> Iterator[Finding]:
    """Whether every direct dependency is installed in the version that was tested."""
    wrong = 0
    for text in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong += 1
            yield Finding(
                "packages", "fatal", f"{requirement.name} is missing", "Install chatsvc again (`make setup`)."
            )
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong += 1
            remedy = f"It was tested with {requirement.specifier}: install chatsvc again (`make setup`)."
            yield Finding("packages", "warning", f"{requirement.name} {version}", remedy)
    if not wrong:
        yield Finding("packages", "good", "every dependency is installed in its pinned version")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """The instruction sets that decide how fast a model runs."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    useful = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if flag in flags]
    cores = len(os.sched_getaffinity(0))
    if not useful:
        remedy = "The service will work, but slowly: fast runners need AVX2 or newer (x86) or dot products (ARM)."
        yield Finding("processor", "warning", f"{cores} cores without fast integer instructions", remedy)
    else:
        yield Finding("processor", "good", f"{cores} cores, {', '.join(useful)}")


def runner(settings: Settings) -> Iterator[Finding]:
    """Which runner serves GGUF and safetensors models on this machine."""
    from chatsvc.engine.runners import choice

    wanted = settings.engine.runner
    missing = choice.missing("native" if wanted == "auto" else wanted)
    if wanted == "auto":
        yield Finding("runner", "good", f"openvino, because {missing}" if missing else "native")
    elif missing:
        remedy = "Set engine.runner to auto, or install what the runner needs."
        yield Finding("runner", "fatal", f"engine.runner = {wanted} cannot serve here: {missing}", remedy)
    else:
        yield Finding("runner", "good", f"{wanted}, because engine.runner says so")


def memory_and_disk(settings: Settings) -> Iterator[Finding]:
    """Free memory, and free space for the home and the audit log."""
    free = cgroup.available_bytes()
    if free < _LEAST_MEMORY_BYTES:
        remedy = "Give the service at least 1 GB, or lower engine.cache_size_gb and engine.max_num_seqs."
        yield Finding("memory", "warning", f"{free >> 20} MB are free", remedy)
    else:
        yield Finding("memory", "good", f"{free >> 20} MB are free")
    for name, path in {"home": settings.home, "audit log": settings.audit_directory}.items():
        disk = shutil.disk_usage(_nearest(path)).free
        if disk < _LEAST_DISK_BYTES:
            remedy = f"Free some space on the disk of {path}: a full disk stops the audit log, and so the service."
            yield Finding("disk", "warning", f"{disk >> 20} MB are free for the {name}", remedy)
        else:
            yield Finding("disk", "good", f"{disk >> 20} MB are free for the {name}")


def clock(settings: Settings, now: float | None = None) -> Iterator[Finding]:
    """Whether the clock is right: tokens expire by it, and records are dated by it."""
    present = time.time() if now is None else now
    files = [path for path in _files(settings.audit_directory) if path.stat().st_mtime > present + 1]
    if present < _RELEASED_AFTER or files:
        what = f"{files[0]} was written in the future" if files else time.strftime("it is %Y", time.gmtime(present))
        remedy = "Synchronise the clock (chrony, systemd-timesyncd): tokens expire and records are dated by it."
        yield Finding("clock", "fatal", what, remedy)
    else:
        yield Finding("clock", "good", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(present)))


def configuration(settings: Settings) -> Iterator[Finding]:
    """What would keep `chatsvc serve` from starting, and its warnings."""
    problems, warnings = start_checks.problems(settings), start_checks.warnings(settings)
    remedy = "Change it, then run `chatsvc config check`."
    yield from (Finding("configuration", "fatal", message, remedy) for message in problems)
    yield from (Finding("configuration", "warning", message, remedy) for message in warnings)
    if not problems and not warnings:
        yield Finding("configuration", "good", "in order")


def network(settings: Settings) -> Iterator[Finding]:
    """Who may connect, and whether the service can listen."""
    if settings.guard.allowed_networks:
        listed = ", ".join(str(network) for network in settings.guard.allowed_networks)
        yield Finding("allow list", "good", listed)
    where = settings.server.socket or f"{settings.server.host} port {settings.server.port}"
    serving = pidfile.serving_pid(settings.home)
    if serving is not None:
        yield Finding("port", "good", f"process {serving} serves this home")
        return
    try:
        require_free_port(settings)
    except OperatorError as error:
        yield Finding("port", "fatal", f"{where} cannot be used", error.message)
    else:
        yield Finding("port", "good", f"{where} is free")


def permissions(settings: Settings) -> Iterator[Finding]:
    """Whether the home is writable, and private together with its keys."""
    if not settings.home.exists():
        yield Finding("home", "warning", f"{settings.home} does not exist", "`chatsvc quickstart` makes it.")
        return
    if not os.access(settings.home, os.W_OK | os.X_OK):
        remedy = "Run as the account that owns it, or change its owner to this account."
        yield Finding("home", "fatal", f"{settings.home} cannot be written", remedy)
    keys = [path for path in _files(settings.keys_directory) if path.suffix != ".pub"]  # a public key is no secret
    secrets = [settings.home, settings.keys_directory, *keys]
    secrets += [path for path in (settings.models.kek_file, settings.home / "admin-password") if path]
    open_to_others = [path for path in secrets if path.exists() and stat.S_IMODE(path.stat().st_mode) & _MODE_OF_OTHERS]
    for path in open_to_others:
        yield Finding("permissions", "fatal", f"other accounts may read {path}", f"chmod go-rwx '{path}'")
    if not open_to_others:
        yield Finding("permissions", "good", "home and keys are private")


def audit_keys(settings: Settings) -> Iterator[Finding]:
    """Whether the first sealing key is off this machine, and whether the log names only public keys of keys/."""
    from chatsvc.audit.format.layout import logs
    from chatsvc.audit.format.replay import known_keys
    from chatsvc.audit.keys import initial_seals, trusted_keys

    if not os.access(settings.keys_directory, os.R_OK | os.X_OK):
        return  # no log was begun yet, or the check of permissions reports that this account may not read
    waiting = initial_seals(settings.keys_directory)
    if waiting:
        what = f"{waiting[0]} is still on this machine: an attacker who gets it can forge the records that it sealed"
        remedy = (
            "`chatsvc audit seal-key --output DIR` moves it to DIR, a disk for your auditor; "
            "`chatsvc audit seal-key --drop` destroys it."
        )
        yield Finding("audit seal", "warning", what, remedy)
    else:
        yield Finding("audit seal", "good", "no first sealing key is on this machine")
    own = trusted_keys(settings.keys_directory)
    for key in [key for log in logs(settings.audit_directory) for key in known_keys(log) if key.public not in own]:
        what = f"the audit log names a public key that is not among those of keys/: {key.name} {key.fingerprint}"
        yield Finding("audit keys", "fatal", what, "`chatsvc audit verify`; see docs/reference/audit-format.md.")


def model(settings: Settings) -> Iterator[Finding]:
    """Whether the active model would be served, with the checks of a start."""
    try:
        active = model_store(settings).active()
        if active is None:
            remedy = "`chatsvc quickstart` imports the embedded one; `chatsvc model fetch` and `import` bring others."
            yield Finding("model", "fatal", "none is active", remedy)
            return
        active.verify(full=False)
        examine_model(settings, active)
    except (ChatsvcError, OSError) as error:
        yield Finding("model", "fatal", str(error), "`chatsvc model verify`, then import or fetch it again.")
        return
    what = f"{active.name} ({active.format})"
    if lacks_key(settings, active):
        remedy = "Set models.kek_file, unless only the engine's unit has the key (as a credential)."
        yield Finding("model", "warning", f"{what} is sealed, and no key for it is configured here", remedy)
    else:
        yield Finding("model", "good", what)


def _nearest(path: Path) -> Path:
    return path if path.exists() else _nearest(path.parent)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else []
