"""Builds an air-gap kit on a machine with a network: one signed archive that installs itself on a machine without one.

In it: the wheels for the target, locked by hash; a model of the store (sealed or not); the templates of config, nginx,
systemd and compose; the documents; an SBOM; the programs that verify and install it; a delivery checklist. The
verifying and installing side is in :mod:`chatsvc.kit.verify`, which needs nothing of this package.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.utils import parse_wheel_filename

from chatsvc.disk.durable import copy_file, rename, sync_file
from chatsvc.disk.files import (
    Progress,
    make_private_folder,
    no_progress,
    open_regular,
    sha256_of,
    temporary_folder,
)
from chatsvc.errors import OperatorError
from chatsvc.kit import install, sbom, verify
from chatsvc.kit.sbom import Wheel
from chatsvc.models.description import check_name
from chatsvc.models.signing import SigningKeys
from chatsvc.models.store import ModelFolder
from chatsvc.models.supply.programs import run_module

# They run where only Python is installed.
_PROGRAMS = {"kit_verify.py": Path(str(verify.__file__)), "kit_install.py": Path(str(install.__file__))}
_PURPOSE = "kit-signing"
_EXPECTED_WHEELS_BYTES = 300_000_000  # for the progress bar; pip knows only the size of each file


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that the wheels are for; None means one like this.

    Attributes:
        python: its Python, such as ``3.11``.
        platform: pip's name of it, such as ``manylinux_2_28_x86_64``.
    """

    python: str | None = None
    platform: str | None = None

    @property
    def python_version(self) -> str:
        """Major and minor."""
        return self.python or f"{sys.version_info.major}.{sys.version_info.minor}"

    def pip_options(self, own: Path) -> list[str]:
        """The options of ``pip download``. Our own wheel holds compiled code, so pip must accept its platform as well.

        Raises:
            OperatorError: our own wheel is not for the target.
        """
        platforms = [self.platform] if self.platform else []
        ours = {tag.platform for tag in parse_wheel_filename(own.name)[3]} - {"any"}
        if self.platform and ours:
            machine = _machine_of(self.platform)
            platforms += sorted(each for each in ours if _machine_of(each) == machine and each != self.platform)
            if machine not in map(_machine_of, ours):
                raise OperatorError(
                    f"{own.name} is not for {self.platform}: build it on such a machine (`pip wheel --no-deps .`) and "
                    "give it with --wheel"
                )
        options = ["--python-version", self.python] if self.python else []
        return options + [word for each in platforms for word in ("--platform", each)]


def _machine_of(platform: str) -> str:
    """``manylinux_2_28_x86_64`` and ``linux_x86_64`` -> ``x86_64``."""
    return re.sub(r"^(?:many|musl)?linux(?:_\d+_\d+|\d+)?_", "", platform)


@dataclass(frozen=True, slots=True)
class Contents:
    """The parts of a kit.

    Attributes:
        wheel: chatsvc's own wheel, or the checkout it is built from.
        constraints: the file that pins every package, if there is one.
        model: a model of the store, or none.
        resources: the operator's files and folders, by their names in the kit.
        target: the machine the wheels are for.
    """

    wheel: Path
    constraints: Path | None
    model: ModelFolder | None
    resources: dict[str, Path]
    target: Target = Target()


def signing_keys(folder: Path) -> SigningKeys:
    """The key that signs kits; its public half goes to the receiver separately from the kit."""
    return SigningKeys(folder, _PURPOSE)


def build(output: Path, contents: Contents, keys: SigningKeys, progress: Progress = no_progress) -> str:
    """Write the kit to ``output``; returns its SHA-256 in hex.

    Raises:
        OperatorError: the output exists already, or a part cannot be obtained; nothing is left behind.
    """
    sbom.require_library()
    if output.exists():
        raise OperatorError(f"{output} exists already; remove it, or give another --output")
    release = version("chatsvc")
    make_private_folder(output.absolute().parent)
    with temporary_folder(output.absolute().parent) as work:
        kit = work / f"chatsvc-kit-{release}"
        kit.mkdir()
        wheels = _wheels(work, kit / "wheels", contents, progress)
        (kit / "requirements.txt").write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
        model_files = _model(kit / "model", contents.model, progress)
        for name, source in contents.resources.items():
            _copy(source, kit / name)
        for name, program in _PROGRAMS.items():
            shutil.copyfile(program, kit / name)
        model = contents.model.name if contents.model else None
        (kit / "sbom.cdx.json").write_text(sbom.document(release, wheels, (model, model_files) if model else None))
        (kit / "CHECKLIST.md").write_text(_checklist(release, keys, model, len(wheels)))
        about = {"v": 1, "version": release, "python": contents.target.python_version, "model": model}
        _sign(kit, about, keys, progress)
        return _archive(kit, output, progress)


def _wheels(work: Path, folder: Path, contents: Contents, progress: Progress) -> list[Wheel]:
    own = contents.wheel if contents.wheel.is_file() else _own_wheel(work, contents.wheel)

    def watch(num_bytes: int) -> None:
        progress("downloading wheels", min(num_bytes, _EXPECTED_WHEELS_BYTES), _EXPECTED_WHEELS_BYTES)

    constraints = ["-c", str(contents.constraints)] if contents.constraints else []
    command = ["pip", "download", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    command += ["--progress-bar=off", f"--dest={folder}", *constraints, *contents.target.pip_options(own), str(own)]
    scratch = work / "scratch"
    scratch.mkdir()
    run_module(command, scratch, watch)
    found = {path.name: path for path in folder.glob("*.whl")}
    if own.name not in found:
        copy_file(own, folder / own.name)
        found[own.name] = folder / own.name
    return [sbom.read_wheel(path) for _, path in sorted(found.items())]


def _own_wheel(work: Path, checkout: Path) -> Path:
    scratch, folder = work / "build", work / "own"
    scratch.mkdir()
    command = ["pip", "wheel", "--disable-pip-version-check", "--no-input", "--no-deps", "--wheel-dir", str(folder)]
    run_module([*command, str(checkout)], scratch, lambda _: None)
    return next(folder.glob("chatsvc-*.whl"))


def _model(folder: Path, model: ModelFolder | None, progress: Progress) -> dict[str, str]:
    """Copy the model, verified; returns its files' SHA-256."""
    if model is None:
        return {}
    model.verify(full=True, progress=progress)
    target = folder / check_name(model.name)
    target.mkdir(parents=True)
    return {path.name: copy_file(path, target / path.name, progress) for path in sorted(model.path.iterdir())}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copyfile(source, target)


def _sign(kit: Path, about: dict[str, object], keys: SigningKeys, progress: Progress) -> None:
    files = []
    paths = sorted(path for path in kit.rglob("*") if path.is_file())
    for number, path in enumerate(paths, start=1):
        with open_regular(path) as file:
            digest = sha256_of(file)
            size = file.tell()
        files.append({"path": path.relative_to(kit).as_posix(), "size": size, "sha256": digest})
        progress("hashing the kit", number, len(paths))
    manifest = json.dumps({**about, "files": files}, indent=1, ensure_ascii=False).encode() + b"\n"
    (kit / verify.MANIFEST).write_bytes(manifest)
    (kit / verify.SIGNATURE).write_text(keys.sign(verify.CONTEXT + manifest).hex() + "\n")


def _archive(kit: Path, output: Path, progress: Progress) -> str:
    """A plain tar, since wheels and weights do not compress, without names of users and times."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    unfinished = kit.parent / "kit.tar"
    with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(kit.rglob("*")):
            tar.add(path, f"{kit.name}/{path.relative_to(kit).as_posix()}", recursive=False, filter=anonymous)
    with open_regular(unfinished) as file:
        digest = sha256_of(file, progress, f"hashing {output.name}")
    sync_file(unfinished)
    rename(unfinished, output)
    return digest


def _checklist(release: str, keys: SigningKeys, model: str | None, num_wheels: int) -> str:
    keys.ensure()
    public = keys.public_bytes()
    return f"""\
# Delivery checklist: chatsvc {release}

Model: {model or "none"}. Wheels: {num_wheels}. Signed by key {hashlib.sha256(public).hexdigest()[:16]}.

Who delivers:

- [ ] The kit was built on a machine that builds nothing else, from a tagged commit.
- [ ] `chatsvc bundle verify KIT.tar PUBLIC_KEY` said *verified* on another machine.
- [ ] The SHA-256 of KIT.tar and the public key went to the receiver separately from the kit.
- [ ] If the model is sealed, its key was sent separately from both, to a named person.
- [ ] `sbom.cdx.json` was checked for known vulnerabilities on the day of delivery.

Who receives:

- [ ] `sha256sum KIT.tar` equals the number that was sent separately.
- [ ] `kit_verify.py` is the one kept from before, or was read; `python3 kit_verify.py KIT.tar PUBLIC_KEY` said
      *verified*.
- [ ] `python3 kit_install.py install KIT.tar PUBLIC_KEY --prefix /opt/chatsvc` ended with exit code 0.
- [ ] `/opt/chatsvc/bin/chatsvc doctor` has no finding; `model verify --full` and `audit verify` said ok.
- [ ] The address list (`guard.allowed_networks`) names the clients' networks and no others.
- [ ] The administrator's password was read once from `home/admin-password`, changed, and the file removed.
- [ ] A backup of `home/` was made and restored once. The kit is kept until the next one is in service.
"""
