"""Installs a chatsvc kit without a network, with Python's standard library alone: nothing else is installed yet.

``python3 kit_install.py install KIT.tar PUBLIC_KEY --prefix DIR``, then ``upgrade`` and ``rollback``; the commands
under ``chatsvc bundle`` call the same code. Nothing of a kit is written before all of it verified.

::

    PREFIX/
      current -> releases/<version>-<digest>     previous -> …     swapped in one step each
      releases/<version>-<digest>/venv  config  nginx  systemd  docs …
      home/                                      CHATSVC_HOME: keys, accounts, log, models; no release touches it
      bin/chatsvc                                runs the current release on that home
      systemd/                                   the units with this prefix in them; --systemd DIR puts them there too
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

try:
    from chatsvc.kit.verify import Kit, KitDiffers, KitError, Member, guarded, read_public_key, report, verify
except ImportError:  # beside it in the kit's folder, before chatsvc is installed
    from kit_verify import Kit, KitDiffers, KitError, Member, guarded, read_public_key, report, verify  # type: ignore[no-redef,import-not-found]

_BLOCK = 1 << 20


def install(kit: Kit, prefix: Path, version: str | None = None) -> Path:
    """Install the kit under ``prefix``, ready to run; upgrade the installation that is there, if any.

    Raises:
        KitError: another Python is needed, the kit is older than the current release and ``version`` does not name
            it, or pip or the model import failed; the current release is untouched.
    """
    wanted, ours = kit.manifest["python"], f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted != ours:
        raise KitError(f"the kit's wheels are for Python {wanted}, this is {ours}: run it with python{wanted}")
    release = prefix / "releases" / kit.release
    if _target(prefix / "current") == release.name:
        raise KitError(f"{release.name} is already the current release")
    before = _target(prefix / "current")
    if before is not None and _is_older(release.name, before) and version != kit.manifest["version"]:
        raise KitError(
            f"the kit holds {kit.manifest['version']}, which is older than the current release {before}: to go back to "
            f"it, give --version {kit.manifest['version']}"
        )
    if release.exists():
        shutil.rmtree(release)  # an installation that was interrupted, or a release rolled back from
    for folder, mode in ((prefix / "releases", 0o755), (prefix / "home", 0o700), (prefix / "bin", 0o755)):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    _extract(kit, release)
    _say("making the Python environment, without any network")
    _run([sys.executable, "-m", "venv", str(release / "venv")])
    pip = [str(release / "venv" / "bin" / "python"), "-m", "pip", "--isolated", "--disable-pip-version-check"]
    options = ["--no-index", "--no-cache-dir", "--require-hashes", "--find-links", str(release / "wheels")]
    _run([*pip, "install", "--quiet", *options, "-r", str(release / "requirements.txt")])
    _write_launcher(prefix)
    write_units(release / "systemd", prefix, prefix / "systemd")
    _bring_model(kit, prefix, release)
    shutil.rmtree(release / "wheels")
    shutil.rmtree(release / "model", ignore_errors=True)
    _record_going_back(prefix, before, release.name)
    _switch(prefix, release.name)
    return release


def rollback(prefix: Path) -> str:
    """Make the previous release the current one again; the database's tables go back with it.

    Raises:
        KitError: there is none.
    """
    current, previous = _target(prefix / "current"), _target(prefix / "previous")
    if current is None or previous is None:
        raise KitError(f"{prefix}: there is no previous release to go back to")
    _record_going_back(prefix, current, previous)
    head = _schema(prefix, previous, "head").strip()
    if head != _schema(prefix, current, "head").strip():
        _say(f"taking the database's tables back to {head}")
        _schema(prefix, current, "back", head)  # only the newer release has the downgrade
    write_units(prefix / "releases" / previous / "systemd", prefix, prefix / "systemd")
    _switch(prefix, previous)
    return previous


def _is_older(release: str, current: str) -> bool:
    return _order(release) < _order(current)


def _order(release: str) -> tuple[list[int], bool, str]:
    """Of a release's name by its version: 0.9.1, then 0.10.0rc1, then 0.10.0."""
    version = release.rpartition("-")[0]
    numbers = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    rest = version[numbers.end() :] if numbers else version
    return [int(number[:9]) for number in numbers[0].split(".")] if numbers else [], not rest, rest


def _record_going_back(prefix: Path, current: str | None, release: str) -> None:
    """Have the current release record the rollback in its audit log; without the record there is no rollback.

    Releases call each other by the names ``chatsvc.cli.going_back`` and ``chatsvc.cli.schema``: these must not change.
    """
    if current is not None and _is_older(release, current):
        program = prefix / "releases" / current / "venv" / "bin" / "python"
        _run([str(program), "-m", "chatsvc.cli.going_back", current, release], prefix)


def _extract(kit: Kit, release: Path) -> None:
    """Write the files, each hashed again as it is written: the archive may have changed since it was verified."""
    expected = {entry["path"]: entry["sha256"] for entry in kit.manifest["files"]}
    sizes = {entry["path"]: entry["size"] for entry in kit.manifest["files"]}
    with tarfile.open(kit.archive, "r:", tarinfo=Member) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            if path not in expected or not member.isreg():
                continue
            if member.size != sizes[path]:
                raise KitDiffers(f"{path}: changed while it was installed")
            reader = tar.extractfile(member)
            assert reader is not None  # it is a regular file
            target, digest = release / path, hashlib.sha256()
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as writer:
                while block := reader.read(_BLOCK):
                    digest.update(block)
                    writer.write(block)
            if digest.hexdigest() != expected[path]:
                raise KitDiffers(f"{path}: changed while it was installed")


def _bring_model(kit: Kit, prefix: Path, release: Path) -> None:
    name = kit.manifest["model"]
    if name is None or (prefix / "home" / "models" / name).exists():
        return
    _say(f"bringing the model {name} in")
    program = str(release / "venv" / "bin" / "chatsvc")
    first = not (prefix / "home" / "models" / "current").is_symlink()
    arguments = ["model", "import", str(release / "model" / name), "--name", name, *(["--activate"] if first else [])]
    _run([program, *arguments], prefix)


def _schema(prefix: Path, release: str, *arguments: str) -> str:
    python = prefix / "releases" / release / "venv" / "bin" / "python"
    return _run([str(python), "-m", "chatsvc.cli.schema", *arguments], prefix)


def _write_launcher(prefix: Path) -> None:
    home, program = shlex.quote(str(prefix / "home")), shlex.quote(str(prefix / "current" / "venv" / "bin" / "chatsvc"))
    launcher = prefix / "bin" / "chatsvc"
    lines = [
        "#!/bin/sh",
        f'[ -n "$CHATSVC_HOME" ] || CHATSVC_HOME={home}',
        "export CHATSVC_HOME",
        f'exec {program} "$@"',
    ]
    launcher.write_text("\n".join(lines) + "\n")
    launcher.chmod(0o755)


def write_units(templates: Path, prefix: Path, folder: Path) -> list[Path]:
    """The kit's systemd units with this prefix and its home filled in."""
    written = []
    for template in sorted(templates.glob("*.service")):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        lines = [_unit_line(line, prefix) for line in template.read_text(encoding="utf-8").splitlines()]
        unit = folder / template.name
        unit.write_text("".join(f"{line}\n" for line in lines if line is not None), encoding="utf-8")
        written.append(unit)
    return written


def _unit_line(line: str, prefix: Path) -> str | None:
    """A line with the prefix in place of the template's /opt/chatsvc and /var/lib/chatsvc; None: leave it out."""
    home, document = prefix / "home", (prefix / "current/docs/how-to/runbook.md").as_uri().replace("%", "%%")
    here = {
        "Documentation=file:/opt/chatsvc/docs/how-to/runbook.md": f"Documentation={document}",
        "Environment=CHATSVC_HOME=/var/lib/chatsvc": f"Environment={_quoted(f'CHATSVC_HOME={home}')}",
        "Environment=CHATSVC_CONFIG=/etc/chatsvc/chatsvc.toml": None,  # it is home/chatsvc.toml
        "StateDirectory=chatsvc": f"ReadWritePaths={_quoted(str(home))}",
        "StateDirectoryMode=0700": None,
    }
    if prefix.parts[1] in {"home", "root"}:
        here["ProtectHome=yes"] = "ProtectHome=read-only"
    program = _quoted(str(prefix / "bin" / "chatsvc"))
    name, _, value = line.partition("=")
    if name == "BindReadOnlyPaths":  # the engine's view of models, configuration and the public key
        optional = "-" if value.startswith("-") else ""
        return f"{name}={optional}{_quoted(value.removeprefix('-').replace('/var/lib/chatsvc/', f'{home}/', 1))}"
    return here.get(line, line.replace("=/opt/chatsvc/bin/chatsvc ", f"={program} "))


def _quoted(value: str) -> str:
    """As systemd.syntax(7) wants a value with spaces; a percent sign begins a specifier."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != value or " " in value else value


def _switch(prefix: Path, release: str) -> None:
    before = _target(prefix / "current")
    if before is not None:
        _swap(prefix / "previous", f"releases/{before}")
    _swap(prefix / "current", f"releases/{release}")


def _swap(link: Path, target: str) -> None:
    beside = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    beside.symlink_to(target)
    beside.replace(link)


def _target(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None


def _run(command: list[str], prefix: Path | None = None) -> str:
    """``prefix``: run a command of ours for its home; as root, with the account of the home's owner.

    A symbolic link that the owner put into the home then reaches only what the owner may write.
    """
    environment = {"CHATSVC_HOME": str(prefix / "home")} if prefix else {}
    owner = (prefix / "home").stat() if prefix and os.geteuid() == 0 else None
    account: dict[str, Any] = (
        {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if owner and owner.st_uid else {}
    )
    given = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
    done = subprocess.run(  # noqa: S603  our own programs, no shell
        given, capture_output=True, text=True, check=False, **account
    )
    if done.returncode != 0:
        raise KitError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return str(done.stdout)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="kit_install.py", description="Install a chatsvc kit without a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("install", "upgrade", "rollback"):
        command = commands.add_parser(name)
        if name != "rollback":
            command.add_argument("kit", type=Path)
            command.add_argument("public_key", help="in hex, or a file that holds it")
            command.add_argument("--systemd", type=Path, metavar="DIR", help="write the units there as well")
            command.add_argument("--version", help="the kit's version; needed where it is older than the current one")
        command.add_argument("--prefix", type=Path, required=True)
    given = parser.parse_args(arguments)
    prefix = given.prefix.absolute()
    if given.command == "rollback":
        return guarded(lambda: f"{rollback(prefix)} is the current release; restart the service")
    return guarded(lambda: installed(given.kit, given.public_key, prefix, given.systemd, given.version))


def installed(
    archive: Path, public_key: str, prefix: Path, units: Path | None = None, version: str | None = None
) -> str:
    """Verify and install; returns a report for the operator."""
    kit = verify(archive, read_public_key(public_key))
    _say(f"verified: {report(kit)}")
    is_first = not (prefix / "current").is_symlink()
    release = install(kit, prefix, version)
    if units is not None:
        for unit in write_units(release / "systemd", prefix, units):
            _say(f"{unit}: written")
    done = f"{release.name} is the current release; "
    return done + (_next_steps(prefix) if is_first else "restart the service: systemctl restart chatsvc")


def _next_steps(prefix: Path) -> str:
    program, home, current, units = (
        shlex.quote(str(prefix / name)) for name in ("bin/chatsvc", "home", "current", "systemd")
    )
    return f"""start it with: {program} quickstart

To try it, that is all. As a service of this machine, as root:
  1. useradd --system --home-dir {home} chatsvc
  2. cp {current}/config/chatsvc.toml {home}/, and list your clients' networks there: guard.allowed_networks
  3. {program} user add admin --role admin
  4. chown -R chatsvc: {home}
  5. cp {units}/chatsvc.service /etc/systemd/system/ (install --systemd does it), systemctl enable --now chatsvc
  6. nginx in front of it: {program} config nginx --help
  7. {program} doctor
Containers instead: {current}/compose.yaml, with an image made elsewhere and loaded by `docker load`.
The documents: {current}/docs/index.md"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
