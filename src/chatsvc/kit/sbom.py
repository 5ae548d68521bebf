"""The SBOM of an air-gap kit, as CycloneDX 1.6 JSON: every wheel and the model, with licences and hashes.

The library ``cyclonedx-python-lib`` makes the document (extra ``kit``). Knows nothing about how the kit is built.
"""

from __future__ import annotations

import email
import hashlib
import importlib.util
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsvc.disk.files import open_regular, sha256_of
from chatsvc.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel file and what its metadata says."""

    path: Path
    name: str
    version: str
    licence: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line of requirements.txt that only this file satisfies."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's metadata.

    Raises:
        OperatorError: it is not a wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(archive.read(name))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise OperatorError(f"{path.name} is not a wheel") from error
    with open_regular(path) as file:
        digest = sha256_of(file)
    licence = metadata["License-Expression"] or metadata["License"] or ""
    return Wheel(path, metadata["Name"], metadata["Version"], licence.strip().partition("\n")[0], digest)


def require_library() -> None:
    """Check that the extra ``kit`` is installed.

    Raises:
        OperatorError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("cyclonedx") is None:
        raise OperatorError("building a kit needs cyclonedx-python-lib: pip install 'chatsvc[kit]', or make setup-dev")


def document(version: str, wheels: list[Wheel], model: tuple[str, dict[str, str]] | None) -> str:
    """The SBOM as JSON.

    Args:
        version: of chatsvc.
        wheels: what is installed.
        model: its name, and its files' SHA-256 by name.
    """
    from cyclonedx.model.bom import Bom  # noqa: PLC0415  half a second that only a build needs
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415

    root = Component(name="chatsvc-kit", version=version, type=ComponentType.APPLICATION)
    bom = Bom(components=[_wheel_component(wheel) for wheel in wheels])
    bom.metadata.component = root
    if model is not None:
        name, files = model
        parts = [_component(file, "", digest, ComponentType.FILE) for file, digest in sorted(files.items())]
        whole = hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest()
        bom.components.add(_component(name, "", whole, ComponentType.MACHINE_LEARNING_MODEL, components=parts))
    bom.register_dependency(root, list(bom.components))
    return str(JsonV1Dot6(bom).output_as_string(indent=2))


def _wheel_component(wheel: Wheel) -> Any:
    from cyclonedx.contrib.license.factories import LicenseFactory  # noqa: PLC0415
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    purl = PackageURL("pypi", None, wheel.name.lower().replace("_", "-"), wheel.version)
    licences = [LicenseFactory().make_from_string(wheel.licence)] if wheel.licence else []
    return _component(wheel.name, wheel.version, wheel.sha256, ComponentType.LIBRARY, purl=purl, licenses=licences)


def _component(name: str, version: str, sha256: str, kind: Any, **more: Any) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415
    from cyclonedx.model.component import Component  # noqa: PLC0415

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(name=name, version=version or None, type=kind, bom_ref=f"{name}@{version}", hashes=hashes, **more)
