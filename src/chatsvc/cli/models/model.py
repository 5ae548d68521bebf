"""``chatsvc model``: fetch, import, list, verify, convert, activate, remove and seal models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from chatsvc.cli.audit.recording import recorded, recorded_long
from chatsvc.cli.models import activation
from chatsvc.cli.models.importing import ensure_known, recorded_import
from chatsvc.cli.models.smoke_test import testing_store, verified
from chatsvc.cli.output import ShownProgress, json_option, print_json, print_result
from chatsvc.errors import ModelRefused
from chatsvc.settings.load import Settings, load
from chatsvc.wiring import model_store

if TYPE_CHECKING:
    from chatsvc.models.seal.sealed import KeyEncryptionKey
    from chatsvc.models.store import ModelFolder, ModelStore

_name_option = click.option("--name", help="The model's name in the store; by default made from the source's name.")
_activate_option = click.option("--activate", "activates", is_flag=True, help="Serve this model from now on.")


@click.group("model")
def command() -> None:
    """Models: fetch, import, list, verify, convert, seal, activate.

    Only safetensors, GGUF and OpenVINO files are imported, never pickles or code.
    """


@command.command()
@click.argument("source", metavar="[MODEL]", required=False)
@_name_option
@click.option("--revision", help="A branch, tag or commit; the main branch by default.")
@click.option("--file", "file", help="Which GGUF file of the repository, e.g. '*q4_k_m.gguf'; q8_0 by default.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before (as models.offline does).")
@click.option("--endpoint", help="Another server with ModelScope's API, e.g. an internal mirror.")
@_activate_option
@json_option
def fetch(source: str | None, name: str | None, activates: bool, as_json: bool, **options: str | bool | None) -> None:
    """Fetch MODEL and import it; without MODEL, list the models that are known by name.

    MODEL is such a name, or OWNER/NAME of ModelScope, e.g. qwen/Qwen1.5-0.5B-Chat. Run the same command again after an
    interruption: it resumes the download.
    """
    from chatsvc.models.supply import known
    from chatsvc.models.supply.source import FetchOptions
    from chatsvc.models.supply.source import fetch as fetch_model

    if source is None:
        _list_known(as_json)
        return
    settings = load()
    chosen = FetchOptions(**{**options, "offline": bool(options["offline"]) or settings.models.offline})  # type: ignore[arg-type]
    store = testing_store(settings)
    if source in known.MODELS:
        if name or chosen.revision or chosen.file or chosen.endpoint:
            raise click.UsageError(f"{source} is one pinned file: omit --name, --revision, --file and --endpoint.")
        folder = ensure_known(settings, known.MODELS[source], offline=chosen.offline)
    else:
        folder = recorded_import(
            settings, "fetch", source, lambda shown: fetch_model(store, source, name, chosen, shown)
        )
    _print_imported(settings, store, folder, activates, as_json)


def _list_known(as_json: bool) -> None:
    from chatsvc.models.supply import known

    if as_json:
        print_json([model.described() for model in known.MODELS.values()])
        return
    for model in known.MODELS.values():
        what = model.described()
        click.echo(f"{model.name}  ({model.title}, {what['size_mb']} MB)")
        click.echo(f"  {', '.join(model.languages)}; {model.licence}; {model.origin}, SHA-256 {model.sha256}")
    click.echo(
        "Fetch one with `chatsvc model fetch NAME`, or any model of ModelScope with `chatsvc model fetch OWNER/NAME`."
    )


@command.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path), required=False)
@_name_option
@click.option("--embedded", "is_embedded", is_flag=True, help="Instead of PATH: the small trial model (98 MB).")
@_activate_option
@json_option
def import_(path: Path | None, name: str | None, is_embedded: bool, activates: bool, as_json: bool) -> None:
    """Import PATH: a .gguf file, or a folder with safetensors or OpenVINO files."""
    from chatsvc.models.supply.known import EMBEDDED

    if (path is None) != is_embedded or (is_embedded and name):
        raise click.UsageError("Give either PATH, with or without --name, or --embedded, whose name is fixed.")
    settings = load()
    store = testing_store(settings)
    if path is None:
        folder = ensure_known(settings, EMBEDDED, offline=settings.models.offline)
    else:
        folder = recorded_import(
            settings, "import", path.name, lambda shown: store.import_path(path, name, progress=shown)
        )
    _print_imported(settings, store, folder, activates, as_json)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the models of the store; a star marks the active one."""
    store = model_store(load())
    active = store.active()
    found = [_describe(folder, active is not None and folder.name == active.name) for folder in store.list()]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No models yet: 'chatsvc model fetch qwen/Qwen1.5-0.5B-Chat' or 'chatsvc model import FILE.gguf'.")
    for model in found:
        star = "*" if model["active"] else " "
        kind = f"{model['format']}, sealed" if model.get("sealed") else model.get("format")
        what = f"{kind}, context {model['context_length']}" if model["ok"] else "REFUSED: verification failed"
        click.echo(f"{star} {model['name']}  ({what}, {model['size_mb']} MB)")


@command.command()
@click.argument("name", required=False)
@click.option("--full", is_flag=True, help="Hash every file; by default not those whose size and times are unchanged.")
@json_option
def verify(name: str | None, full: bool, as_json: bool) -> None:
    """Compare model NAME (default: all) with its signed manifest, and check that it could be served.

    Exit code 1 if a model fails.
    """
    settings = load()
    store = model_store(settings)
    results = {}
    with ShownProgress() as progress:
        for folder in [store.get(name)] if name else store.list():
            results[folder.name] = verified(settings, folder, full=full, progress=progress)
    if as_json:
        print_json([{"name": key, "ok": value == "ok"} for key, value in results.items()])
    else:
        for key, value in results.items():
            click.echo(f"{key}: {value}")
    if any(value != "ok" for value in results.values()):
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("name")
@click.option(
    "--weight-format",
    type=click.Choice(["int8", "int4"]),
    default="int8",
    show_default=True,
    help="int4 is smaller and faster, but clearly less accurate for small models.",
)
@click.option("--to", "target", help="The name of the result; NAME-int8 or NAME-int4 by default.")
@_activate_option
@json_option
def convert(
    name: str, weight_format: Literal["int8", "int4"], target: str | None, activates: bool, as_json: bool
) -> None:
    """Convert the safetensors model NAME to OpenVINO, for processors without AVX-512 VNNI; needs the torch extra."""
    from chatsvc.models.supply.convert import convert as convert_model

    settings = load()
    store = testing_store(settings)
    folder = recorded_import(
        settings, "convert", name, lambda shown: convert_model(store, name, weight_format, target, shown)
    )
    _print_imported(settings, store, folder, activates, as_json)


@command.command()
@click.argument("name")
@click.option("--version", help="The revision of NAME; needed to go back to an older model of the same source.")
def activate(name: str, version: str | None) -> None:
    """Verify NAME, test that it answers, and serve it from now on."""
    settings = load()
    click.echo(activation.activate(settings, model_store(settings), name, version))


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove NAME, which must not be the active model."""
    settings = load()
    store = model_store(settings)
    store.get(name)
    with recorded(settings, "admin.model.remove", {"name": name}):
        store.remove(name)
    click.echo(f"{name} is removed.")


_key_option = click.option(
    "--key-file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The key-encryption key: 32 raw bytes, mode 0400, or '-' for standard input; models.kek_file by default.",
)


@command.command()
@click.argument("name")
@_key_option
def seal(name: str, key_file: Path | None) -> None:
    """Encrypt the weights of NAME in place; the plaintext is overwritten and removed.

    Make a key with `head -c 32 /dev/urandom > FILE; chmod 0400 FILE`. Without the key the model is lost.
    """
    from chatsvc.models.seal import sealing

    settings = load()
    kek, store = _kek(settings, key_file), model_store(settings)
    store.get(name)
    with recorded_long(settings, "admin.model.seal", {"name": name, "kek_id": kek.id}) as end, ShownProgress() as shown:
        sealing.seal(store, name, kek, shown)
        end["digest"] = store.get(name).card().digest
    click.echo(f"{name} is sealed. To serve it, models.kek_file must name the key; chatsvc keeps no copy of it.")
    click.echo("Plaintext is still in the files it was imported from and in download caches: remove them.")


@command.command("unseal-check")
@click.argument("name")
@_key_option
@json_option
def unseal_check(name: str, key_file: Path | None, as_json: bool) -> None:
    """Unseal NAME in memory to check that it would load; exit code 1 if it would not."""
    from chatsvc.models.seal import sealing

    settings = load()
    kek = _kek(settings, key_file)
    try:
        sealing.check(model_store(settings), name, kek)
    except ModelRefused as error:
        print_result({"name": name, "ok": False}, f"{name}: {error.message}", as_json=as_json)
        raise click.exceptions.Exit(1) from error
    print_result({"name": name, "ok": True}, f"{name}: ok", as_json=as_json)


@command.command("rotate-key")
@click.argument("name")
@_key_option
@click.option(
    "--new-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The new key: 32 raw bytes, mode 0400.",
)
def rotate_key(name: str, key_file: Path | None, new_key_file: Path) -> None:
    """Change the key of the sealed model NAME. Only headers are rewritten; the weights are not encrypted again."""
    from chatsvc.models.seal import sealing
    from chatsvc.models.seal.sealed import read_kek

    settings = load()
    keys, store = (_kek(settings, key_file), read_kek(new_key_file)), model_store(settings)
    store.get(name)
    with recorded(settings, "admin.model.rotate_key", {"name": name, "before": keys[0].id, "after": keys[1].id}) as end:
        sealing.rotate(store, name, keys)
        end["digest"] = store.get(name).card().digest
    click.echo(f"{name} opens only with the key in {new_key_file}. Change models.kek_file before the next start.")


def _kek(settings: Settings, key_file: Path | None) -> KeyEncryptionKey:
    from chatsvc.models.seal.sealed import KEK_BYTES, KeyEncryptionKey, read_kek

    chosen = key_file or settings.models.kek_file
    if chosen is None:
        raise click.UsageError("Give --key-file FILE, or set models.kek_file.")
    if str(chosen) != "-":
        return read_kek(chosen)
    secret = sys.stdin.buffer.read(KEK_BYTES + 1)
    if len(secret) != KEK_BYTES:
        raise click.UsageError(f"Standard input must hold exactly {KEK_BYTES} raw bytes.")
    return KeyEncryptionKey(secret)


def _print_imported(settings: Settings, store: ModelStore, folder: ModelFolder, activates: bool, as_json: bool) -> None:
    """Say that the model is in the store, after activating it where that was asked for."""
    told = f"{folder.name} is in the store; serve it with: chatsvc model activate {folder.name}"
    if activates:
        told = activation.activate(settings, store, folder.name, is_tested=True)
    print_result(_describe(folder, activates), told, as_json=as_json)


def _describe(folder: ModelFolder, active: bool) -> dict[str, object]:
    size = sum(path.lstat().st_size for path in folder.path.iterdir())
    what: dict[str, object] = {"name": folder.name, "active": active, "ok": True, "size_mb": round(size / 1e6)}
    try:
        folder.verify()
        description = folder.description()
    except ModelRefused:
        return {**what, "ok": False}
    return {
        **what,
        "format": description.format,
        "context_length": description.context_length,
        "revision": description.revision,
        "source": description.source,
        "sealed": description.sealed,
    }
