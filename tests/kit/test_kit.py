"""The kit: its verifier against RFC 8032 and forgeries, and its whole life without a network."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.cli.main import main
from chatsvc.errors import OperatorError
from chatsvc.kit import build as bundle
from chatsvc.kit import install as kit_install
from chatsvc.kit import sbom
from chatsvc.kit import verify as kit_verify
from chatsvc.kit.verify import KitDiffers, KitError, verify, verify_signature
from chatsvc.models.signing import SigningKeys
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import embedded
from chatsvc.resources import resource_path
from tests.models.ggufs import tiny_gguf

RELEASE = importlib.metadata.version("chatsvc")

# RFC 8032 section 7.1: public key, message, signature.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_standards_signatures_verify(key: str, message: str, signature: str):
    assert verify_signature(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))


def test_signatures_of_the_library_verify_and_flipped_ones_do_not():
    private = Ed25519PrivateKey.generate()
    public, message = private.public_key().public_bytes_raw(), b"a message"
    signature = private.sign(message)
    assert verify_signature(public, signature, message)
    for position in range(0, 64, 3):
        flipped = bytearray(signature)
        flipped[position] ^= 4
        assert not verify_signature(public, bytes(flipped), message)
    assert not verify_signature(public, signature, b"another message")
    assert not verify_signature(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), signature, message)


def test_malleable_and_malformed_signatures_are_refused():
    key, message, signature = (bytes.fromhex(part) for part in RFC_8032[1])
    shifted = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify_signature(key, signature[:32] + shifted.to_bytes(32, "little"), message)
    assert not verify_signature(key[:31], signature, message)
    assert not verify_signature(key, signature[:63], message)
    not_on_the_curve = (2).to_bytes(32, "little")
    assert not verify_signature(not_on_the_curve, signature, message)
    not_canonical = (2**255 - 19 + 1).to_bytes(32, "little")
    assert not verify_signature(not_canonical, signature, message)
    minus_zero = (1 | 1 << 255).to_bytes(32, "little")
    assert not verify_signature(minus_zero, signature, message)


@pytest.fixture
def keys(tmp_path: Path):
    return bundle.signing_keys(tmp_path / "keys")


@pytest.fixture(scope="session")
def small_kit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A kit with one wheel without dependencies and a tiny model, and the public key."""
    folder = tmp_path_factory.mktemp("kit")
    store = ModelStore(folder / "models", folder / "keys")
    model = store.import_path(tiny_gguf(folder / "tiny.gguf"), "tiny")
    keys = bundle.signing_keys(folder / "keys")
    templates = folder / "config"
    templates.mkdir()
    (templates / "chatsvc.toml").write_text("# a template\n")
    contents = bundle.Contents(
        wheel=make_wheel(folder, "chatsvc", RELEASE),
        constraints=None,
        model=model,
        resources={"config": templates, "compose.yaml": templates / "chatsvc.toml"},
    )
    bundle.build(folder / "kit.tar", contents, keys)
    return folder / "kit.tar", keys.public_bytes()


def make_wheel(
    folder: Path, name: str, version: str, files: dict[str, str] | None = None, tag: str = "py3-none-any"
) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: Apache-2.0\n"
    written = {
        **(files or {f"{name}.py": ""}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}.program:main\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in written.items():
            wheel.writestr(file, content)
    return path


# A program of three files that takes part in an installation: it notes what it is told in its home.
PROGRAM = """
import os, pathlib, sys
def main():
    home = pathlib.Path(os.environ["CHATSVC_HOME"])
    with (home / "calls").open("a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\\n")
    if sys.argv[1:3] == ["model", "import"]:
        (home / "models" / sys.argv[5]).mkdir(parents=True)
    if "fail" in VERSION:
        sys.exit("it failed on purpose")
    print(VERSION)
"""
SCHEMA = """
import os, pathlib, sys
if sys.argv[1] == "head":
    print("HEAD")
else:
    with (pathlib.Path(os.environ["CHATSVC_HOME"]) / "calls").open("a") as calls:
        calls.write("schema back " + sys.argv[2] + "\\n")
"""
GOING_BACK = """
import os, pathlib, sys
with (pathlib.Path(os.environ["CHATSVC_HOME"]) / "calls").open("a") as calls:
    calls.write(" ".join(["going_back", *sys.argv[1:]]) + "\\n")
"""


def _release(folder: Path, keys: SigningKeys, version: str, *, head: str, model: ModelFolder | None) -> Path:
    """A kit of the program above."""
    files = {
        "chatsvc/__init__.py": "",
        "chatsvc/program.py": f"VERSION = {version!r}\n{PROGRAM}",
        "chatsvc/cli/__init__.py": "",
        "chatsvc/cli/schema.py": SCHEMA.replace("HEAD", head),
        "chatsvc/cli/going_back.py": GOING_BACK,
    }
    wheel = make_wheel(folder / version, "chatsvc", RELEASE, files)
    contents = bundle.Contents(wheel, None, model, {"systemd": resource_path("systemd")})
    bundle.build(folder / f"{version}.tar", contents, keys)
    return folder / f"{version}.tar"


def _changed(kit: Path, target: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes]) -> Path:
    """A copy of the archive in which files were changed, dropped (None) or added."""
    with tarfile.open(kit) as old, tarfile.open(target, "w") as new:
        for member in old:
            if not member.isreg():
                new.addfile(member)
                continue
            reader = old.extractfile(member)
            assert reader is not None
            content = change(member.name.partition("/")[2], reader.read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
        for name, content in extra.items():
            added = tarfile.TarInfo(name)
            added.size = len(content)
            new.addfile(added, io.BytesIO(content))
    return target


def test_a_kit_verifies_and_holds_what_it_must(small_kit: tuple[Path, bytes]):
    kit = verify(*small_kit)
    paths = {entry["path"] for entry in kit.manifest["files"]}
    assert {
        "requirements.txt",
        "sbom.cdx.json",
        "CHECKLIST.md",
        "kit_verify.py",
        "kit_install.py",
        "config/chatsvc.toml",
        "compose.yaml",
        "model/tiny/model.gguf",
        f"wheels/chatsvc-{RELEASE}-py3-none-any.whl",
    } <= paths
    assert kit.release.startswith(f"{RELEASE}-")
    with tarfile.open(small_kit[0]) as tar:
        assert {(member.uid, member.uname, member.mtime) for member in tar} == {(0, "", 0)}
        parts = json.load(tar.extractfile(f"{kit.root}/sbom.cdx.json"))  # type: ignore[arg-type]
        requirements = tar.extractfile(f"{kit.root}/requirements.txt").read().decode()  # type: ignore[union-attr]
    assert parts["bomFormat"] == "CycloneDX"
    assert {part["name"] for part in parts["components"]} == {"chatsvc", "tiny"}
    assert f"chatsvc=={RELEASE} --hash=sha256:" in requirements


def test_the_verifier_runs_alone(small_kit: tuple[Path, bytes], tmp_path: Path):
    shutil.copy(kit_verify.__file__, tmp_path / "kit_verify.py")
    command = [sys.executable, "-I", "-S", str(tmp_path / "kit_verify.py"), str(small_kit[0])]
    good = subprocess.run([*command, small_kit[1].hex()], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert f"release {RELEASE}-" in good.stdout
    wrong = subprocess.run([*command, "00" * 32], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "not signed by this key" in wrong.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("config/chatsvc.toml", b"evil", "config/chatsvc.toml: changed"),
        ("config/chatsvc.toml", None, "config/chatsvc.toml: missing"),
        ("model/tiny/model.gguf", b"GGUF", "model/tiny/model.gguf: changed"),
        ("manifest.json", b"{}", "not signed by this key"),
        ("manifest.sig", b"zz", "is not a signature"),
        ("manifest.sig", None, "is missing"),
    ],
)
def test_what_differs_is_named(
    small_kit: tuple[Path, bytes], tmp_path: Path, path: str, content: bytes | None, message: str
):
    forged = _changed(small_kit[0], tmp_path / "forged.tar", lambda name, old: content if name == path else old, {})
    with pytest.raises(KitDiffers, match=message):
        verify(forged, small_kit[1])


@pytest.mark.parametrize(
    "name",
    [f"chatsvc-kit-{RELEASE}/extra.py", f"chatsvc-kit-{RELEASE}/../../etc/cron.d/x", "/etc/x", "other/root", "lonely"],
)
def test_added_files_are_named(small_kit: tuple[Path, bytes], tmp_path: Path, name: str):
    forged = _changed(small_kit[0], tmp_path / "forged.tar", lambda _, old: old, {name: b"x"})
    with pytest.raises(KitDiffers):
        verify(forged, small_kit[1])


def test_a_file_that_is_there_twice_is_named(small_kit: tuple[Path, bytes], tmp_path: Path):
    name = f"chatsvc-kit-{RELEASE}/config/chatsvc.toml"
    forged = _changed(small_kit[0], tmp_path / "forged.tar", lambda _, old: old, {name: b"# a template\n"})
    with pytest.raises(KitDiffers, match="twice"):
        verify(forged, small_kit[1])


def test_a_link_in_a_kit_is_named(small_kit: tuple[Path, bytes], tmp_path: Path):
    forged = tmp_path / "forged.tar"
    shutil.copy(small_kit[0], forged)
    with tarfile.open(forged, "a") as tar:
        link = tarfile.TarInfo(f"chatsvc-kit-{RELEASE}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(KitDiffers, match="no plain file"):
        verify(forged, small_kit[1])


def _append(kit: Path, target: Path, *headers: tarfile.TarInfo) -> Path:
    """The kit with headers put in front that promise more than there is."""
    target.write_bytes(b"".join(one.tobuf(tarfile.GNU_FORMAT) for one in headers) + kit.read_bytes())
    return target


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_members_larger_than_the_archive_are_refused_before_they_are_read(
    small_kit: tuple[Path, bytes], tmp_path: Path, kind: bytes
):
    huge = tarfile.TarInfo(f"chatsvc-kit-{RELEASE}/huge")
    huge.type, huge.size = kind, 1 << 40
    with pytest.raises(KitError, match="cannot be read as a kit"):
        verify(_append(small_kit[0], tmp_path / "huge.tar", huge), small_kit[1])


def test_an_archive_of_holes_is_refused_before_it_is_read(small_kit: tuple[Path, bytes], tmp_path: Path):
    holes = tmp_path / "holes.tar"
    member = tarfile.TarInfo(f"chatsvc-kit-{RELEASE}/holes")
    member.size = 1 << 40
    holes.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with holes.open("ab") as file:
        file.truncate(512 + member.size)
        file.seek(0, os.SEEK_END)
        file.write(small_kit[0].read_bytes())
    with pytest.raises(KitDiffers, match="holes: extra"):  # reading a terabyte would take the test's time-out
        verify(holes, small_kit[1])


@pytest.mark.slow
def test_an_older_kit_becomes_current_only_by_its_version_and_on_record(
    tmp_path: Path, keys, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kits = {}
    for version in ("0.9.1", "0.10.0"):
        monkeypatch.setattr(bundle, "version", lambda _, version=version: version)
        kits[version] = _release(tmp_path, keys, version, head="1", model=None)
    prefix = tmp_path / "prefix"

    def installs(command: str, *more: str) -> int:
        return kit_install.main([command, *more, "--prefix", str(prefix)])

    key = keys.public_bytes().hex()
    assert installs("install", str(kits["0.10.0"]), key) == 0
    current = (prefix / "current").readlink()
    for more in ([], ["--version", "0.10.0"]):
        assert installs("upgrade", str(kits["0.9.1"]), key, *more) == 3
        assert "give --version 0.9.1" in capsys.readouterr().err
        assert (prefix / "current").readlink() == current
    assert installs("upgrade", str(kits["0.9.1"]), key, "--version", "0.9.1") == 0
    older = (prefix / "current").readlink().name
    assert (prefix / "home" / "calls").read_text().splitlines()[-1] == f"going_back {current.name} {older}"
    assert installs("rollback") == 0  # forward again
    assert installs("rollback") == 0
    recorded = [line for line in (prefix / "home" / "calls").read_text().splitlines() if line.startswith("going_back")]
    assert recorded == [f"going_back {current.name} {older}"] * 2


def test_what_is_no_kit_cannot_be_read(tmp_path: Path):
    (tmp_path / "no.tar").write_bytes(b"nothing")
    with pytest.raises(KitError, match="cannot be read"):
        verify(tmp_path / "no.tar", bytes(32))
    assert kit_verify.main([str(tmp_path / "no.tar"), "00" * 32]) == 3


@pytest.mark.parametrize("text", ["zz", "00" * 31, "/etc/hostname"])
def test_what_is_no_public_key_is_said(text: str, capsys: pytest.CaptureFixture[str], small_kit: tuple[Path, bytes]):
    assert kit_verify.main([str(small_kit[0]), text]) == 3
    assert "public key" in capsys.readouterr().err


def test_a_home_that_built_no_kit_asks_for_the_builders_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path))
    (tmp_path / "kit.tar").write_bytes(b"")
    result = CliRunner().invoke(main, ["bundle", "verify", str(tmp_path / "kit.tar")])
    assert result.exit_code == 2
    assert "--public-key" in result.stderr


def test_a_public_key_may_be_a_file(small_kit: tuple[Path, bytes], tmp_path: Path):
    (tmp_path / "key.pub").write_text(small_kit[1].hex() + "\n")
    assert kit_verify.main([str(small_kit[0]), str(tmp_path / "key.pub")]) == 0


def test_a_kit_for_another_python_is_refused(small_kit: tuple[Path, bytes], tmp_path: Path):
    kit = verify(*small_kit)
    other = kit_verify.Kit(kit.archive, kit.root, {**kit.manifest, "python": "3.99"}, kit.digest)
    with pytest.raises(KitError, match=r"run it with python3\.99"):
        kit_install.install(other, tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


def test_an_archive_that_changes_after_it_was_verified_is_not_installed(small_kit: tuple[Path, bytes], tmp_path: Path):
    kit = verify(*small_kit)
    forged = _changed(
        small_kit[0], tmp_path / "forged.tar", lambda name, old: b"#" * len(old) if "toml" in name else old, {}
    )
    swapped = kit_verify.Kit(forged, kit.root, kit.manifest, kit.digest)
    with pytest.raises(KitDiffers, match="changed while it was installed"):
        kit_install.install(swapped, tmp_path / "prefix")
    assert not (tmp_path / "prefix" / "current").exists()


def test_rolling_back_without_a_previous_release_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kit_install.main(["rollback", "--prefix", str(tmp_path)]) == 3
    assert "no previous release" in capsys.readouterr().err


def test_an_output_that_is_there_is_kept(small_kit: tuple[Path, bytes], keys, tmp_path: Path):
    (tmp_path / "kit.tar").write_text("mine")
    contents = bundle.Contents(tmp_path, None, None, {})
    with pytest.raises(OperatorError, match="exists already"):
        bundle.build(tmp_path / "kit.tar", contents, keys)
    assert (tmp_path / "kit.tar").read_text() == "mine"


def test_a_failed_build_leaves_nothing(keys, tmp_path: Path):
    broken = tmp_path / "chatsvc-0-py3-none-any.whl"
    broken.write_text("no wheel")
    (tmp_path / "out").mkdir()
    with pytest.raises(OperatorError):
        bundle.build(tmp_path / "out" / "kit.tar", bundle.Contents(broken, None, None, {}), keys)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_wheel_is_named(tmp_path: Path):
    (tmp_path / "x.whl").write_bytes(b"nothing")
    with pytest.raises(OperatorError, match=r"x\.whl is not a wheel"):
        sbom.read_wheel(tmp_path / "x.whl")


def test_another_target_is_told_to_pip():
    target, pure = bundle.Target("3.12", "manylinux_2_28_x86_64"), Path(f"chatsvc-{RELEASE}-py3-none-any.whl")
    assert target.python_version == "3.12"
    options = ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"]
    assert target.pip_options(pure) == options
    for tags in ("py3-none-linux_x86_64", "cp312-abi3-manylinux2014_x86_64", "py3-none-manylinux_2_17_x86_64"):
        platform = tags.rpartition("-")[2]
        assert target.pip_options(Path(f"chatsvc-{RELEASE}-{tags}.whl")) == [*options, "--platform", platform]
    assert target.pip_options(Path(f"chatsvc-{RELEASE}-py3-none-manylinux_2_28_x86_64.whl")) == options
    assert bundle.Target().pip_options(Path(f"chatsvc-{RELEASE}-py3-none-linux_x86_64.whl")) == []


def test_our_own_wheel_for_another_machine_is_no_kit(tmp_path: Path, keys):
    wheel = make_wheel(tmp_path, "chatsvc", RELEASE, tag="py3-none-linux_aarch64")
    contents = bundle.Contents(wheel, None, None, {}, bundle.Target("3.12", "manylinux_2_28_x86_64"))
    with pytest.raises(OperatorError, match="is not for manylinux_2_28_x86_64"):
        bundle.build(tmp_path / "out" / "kit.tar", contents, keys)


def test_a_wheel_with_compiled_code_becomes_a_kit_for_another_target(tmp_path: Path, keys):
    wheel = make_wheel(tmp_path, "chatsvc", RELEASE, tag="py3-none-linux_x86_64")
    contents = bundle.Contents(wheel, None, None, {}, bundle.Target("3.12", "manylinux_2_28_x86_64"))
    bundle.build(tmp_path / "kit.tar", contents, keys)
    kit = verify(tmp_path / "kit.tar", keys.public_bytes())
    assert f"wheels/{wheel.name}" in {entry["path"] for entry in kit.manifest["files"]}


@pytest.mark.slow
def test_the_life_of_an_installation(
    small_kit: tuple[Path, bytes], tmp_path: Path, keys, capsys: pytest.CaptureFixture[str]
):
    home = small_kit[0].parent
    model = ModelStore(home / "models", home / "keys").get("tiny")
    first = _release(tmp_path, keys, "one", head="1", model=model)
    second = _release(tmp_path, keys, "two", head="2", model=None)
    failing = _release(tmp_path, keys, "fail", head="2", model=ModelStore(home / "models", home / "keys").get("tiny"))
    key, prefix = keys.public_bytes().hex(), tmp_path / "a prefix"
    program = prefix / "bin" / "chatsvc"

    def installs(command: str, kit: Path, *more: str) -> int:
        return kit_install.main([command, str(kit), key, "--prefix", str(prefix), *more])

    assert installs("install", first) == 0
    said = capsys.readouterr().out
    assert "quickstart" in said
    assert all(word in said for word in ("useradd", "guard.allowed_networks", "systemctl enable", "config nginx"))
    assert len(list((prefix / "systemd").glob("*.service"))) == 3
    assert subprocess.run([program, "hello"], capture_output=True, text=True, check=True).stdout == "one\n"
    calls = (prefix / "home" / "calls").read_text().splitlines()
    assert calls[0].endswith("--name tiny --activate")
    assert calls[1] == "hello"
    assert (prefix / "home").stat().st_mode & 0o777 == 0o700

    assert installs("install", first) == 3  # it is there already
    assert "already the current release" in capsys.readouterr().err

    assert installs("upgrade", second, "--systemd", str(tmp_path / "units")) == 0
    assert "systemctl restart" in capsys.readouterr().out
    assert len(list((tmp_path / "units").glob("*.service"))) == 3
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "two\n"
    assert (prefix / "home" / "models" / "tiny").is_dir()

    shutil.rmtree(prefix / "home" / "models")  # so that the next release wants to bring the model in, and fails
    assert installs("upgrade", failing) == 3
    assert "on purpose" in capsys.readouterr().err
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "two\n"

    assert kit_install.main(["rollback", "--prefix", str(prefix)]) == 0
    assert (prefix / "home" / "calls").read_text().splitlines()[-1] == "schema back 1"
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "one\n"
    assert kit_install.main(["rollback", "--prefix", str(prefix)]) == 0  # and forward again
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "two\n"


@pytest.mark.parametrize("prefix", ["/srv/chat", "/srv/a prefix of 100%", "/home/me/chat"])
def test_the_units_hold_the_prefix_and_systemd_reads_them(tmp_path: Path, prefix: str):
    written = kit_install.write_units(resource_path("systemd"), Path(prefix), tmp_path / "units")
    assert [unit.name for unit in written] == ["chatsvc-engine.service", "chatsvc-web.service", "chatsvc.service"]
    shown = prefix.replace("%", "%%")
    for unit in written:
        text = unit.read_text()
        assert not any(left in text for left in ("/opt/chatsvc", "/var/lib/chatsvc/", "StateDirectory=chatsvc\n"))
        if unit.stem == "chatsvc-engine":  # a home of its own, into which it sees what it needs
            assert f"{shown}/home/models:/var/lib/chatsvc-engine/models" in text
        else:
            assert f"CHATSVC_HOME={shown}/home" in text
        assert f"{shown}/bin/chatsvc" in text
        assert ("ProtectHome=read-only" in text) == prefix.startswith("/home")
        # systemd looks whether the program is there.
        unit.write_text(text.replace(f"{shown}/bin/chatsvc", "/bin/true"))
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in written:
        done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if unit.name in line] == []


def test_a_wheel_that_is_not_locked_is_not_installed(small_kit: tuple[Path, bytes], tmp_path: Path):
    forged = _changed(
        small_kit[0],
        tmp_path / "forged.tar",
        lambda name, old: (
            old.replace(b"--hash=sha256:", b"--hash=sha256:0")[:-1] if name == "requirements.txt" else old
        ),
        {},
    )
    with pytest.raises(KitDiffers, match=r"requirements\.txt: changed"):
        verify(forged, small_kit[1])


INSIDE = """
set -e
ip link set lo up
test -z "$(ip -o link show up | grep -v ' lo:')"
chats() {  # starts the service, asks it what it suggests to ask, ends it
    "$WORK/prefix/bin/chatsvc" quickstart > "$WORK/log" 2>&1 &
    service=$!
    for attempt in $(seq 600); do
        grep -q '^curl ' "$WORK/log" && break
        kill -0 $service
        sleep 0.2
    done
    curl -sf "http://127.0.0.1:$PORT/readyz" > /dev/null
    eval "$(grep '^curl ' "$WORK/log")" > "$WORK/answer-$1"
    kill $service
    wait $service
}
"$PYTHON" "$WORK/kit/kit_verify.py" "$WORK/kit.tar" "$KEY"
"$PYTHON" "$WORK/kit/kit_install.py" install "$WORK/kit.tar" "$KEY" --prefix "$WORK/prefix"
test -s "$WORK/prefix/systemd/chatsvc.service"
test -s "$WORK/prefix/current/nginx/chatsvc.conf"
test -s "$WORK/prefix/current/compose.yaml"
chats install
readlink "$WORK/prefix/current" > "$WORK/first"
cp "$WORK/prefix/home/admin-password" "$WORK/password"
"$WORK/prefix/bin/chatsvc" bundle upgrade "$WORK/next.tar" --public-key "$KEY" --prefix "$WORK/prefix"
test "$(readlink "$WORK/prefix/current")" != "$(cat "$WORK/first")"
chats upgrade
cmp "$WORK/prefix/home/admin-password" "$WORK/password"
"$WORK/prefix/bin/chatsvc" bundle rollback --prefix "$WORK/prefix"
test "$(readlink "$WORK/prefix/current")" = "$(cat "$WORK/first")"
chats rollback
"$WORK/prefix/bin/chatsvc" audit verify
"""


def _built(home: Path, output: Path, *more: str) -> str:
    """A kit by the command, as who delivers makes it; returns the public key that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "chatsvc.cli.main", "bundle", "build", "--output", str(output), *more],
        env={**os.environ, "CHATSVC_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"public key +([0-9a-f]{64})", done.stdout)[1]


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(1500)
def test_a_kit_becomes_a_service_that_chats_where_there_is_no_network(tmp_path: Path):
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs root, unshare and ip to make a network namespace")
    home = tmp_path / "builder"
    embedded.ensure(ModelStore(home / "models", home / "keys"))
    key = _built(home, tmp_path / "kit.tar")
    (tmp_path / "kit").mkdir()
    with tarfile.open(tmp_path / "kit.tar") as tar:
        for member in tar:
            path = tmp_path / "kit" / Path(member.name).name
            if path.name in {"kit_verify.py", "kit_install.py"} or path.name.startswith(f"chatsvc-{RELEASE}-"):
                path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    (wheel,) = (tmp_path / "kit").glob("*.whl")  # compiled once: the second kit takes it along
    assert _built(home, tmp_path / "next.tar", "--no-model", "--wheel", str(wheel)) == key
    given = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHON": str(Path(sys.base_prefix) / "bin" / "python3"),  # not the one in which chatsvc is installed
        "WORK": str(tmp_path),
        "KEY": key,
        "PORT": "18080",
    }
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", INSIDE], env=given, capture_output=True, text=True, check=False, timeout=1200
    )
    log = tmp_path / "log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    for name in ("install", "upgrade", "rollback"):
        answer = (tmp_path / f"answer-{name}").read_text()
        pieces = re.findall(r'"token": ?"([^"]*)"', answer)
        assert "Paris" in "".join(pieces), log.read_text() + answer
