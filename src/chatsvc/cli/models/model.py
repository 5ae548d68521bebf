"""``chatsvc model``: bring models in, look at them, verify, convert, choose and remove them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from chatsvc.cli.audit.recording import recorded, recorded_long
from chatsvc.cli.models.smoke_test import activate as make_active
from chatsvc.cli.models.smoke_test import store_of, verified
from chatsvc.cli.output import ShownProgress
from chatsvc.errors import ModelRefused
from chatsvc.settings.load import Settings, load

if TYPE_CHECKING:
    from chatsvc.models.seal.sealed import KeyEncryptionKey
    from chatsvc.models.store import ModelFolder, ModelStore

_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
_name_option = click.option("--name", help="What to call it; made from the source's name when not given.")


@click.group("model")
def command() -> None:
    """Models: fetch, import, list, verify, convert, seal, activate.

    Only safetensors, GGUF and OpenVINO files are taken in; pickles and code never.
    """


@command.command()
@click.argument("model_id")
@_name_option
@click.option("--revision", help="Branch, tag or commit; the main branch when not given.")
@click.option("--file", "file", help="Which GGUF file of the repository, e.g. '*q4_k_m.gguf' (q8_0 when not given).")
@click.option("--offline", is_flag=True, help="Use only modelscope's cache on this machine (as models.offline does).")
@click.option("--endpoint", help="Another server that speaks ModelScope's API, e.g. a mirror inside.")
@click.option("--activate", "activate_it", is_flag=True, help="Make it the model that is served.")
@_json_option
def fetch(
    model_id: str,
    name: str | None,
    activate_it: bool,
    as_json: bool,
    **options: str | bool | None,
) -> None:
    """Fetch MODEL_ID (OWNER/NAME, e.g. qwen/Qwen1.5-0.5B-Chat) from ModelScope and import it.

    A fetch that was cut off goes on where it stopped when the same command is run again.
    """
    from chatsvc.models.supply.source import FetchOptions
    from chatsvc.models.supply.source import fetch as fetch_model

    settings = load()
    chosen = FetchOptions(**{**options, "offline": bool(options["offline"]) or settings.models.offline})  # type: ignore[arg-type]
    store = store_of(settings)
    with recorded_long(settings, "admin.model.fetch", {"source": model_id}) as details, ShownProgress() as progress:
        folder = fetch_model(store, model_id, name, chosen, progress)
        details.update(name=folder.name, digest=folder.card().digest)
    _arrived(settings, store, folder, activate_it, as_json)


@command.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path), required=False)
@_name_option
@click.option("--embedded", "is_embedded", is_flag=True, help="Instead of PATH: the small model to try (98 MB).")
@click.option("--activate", "activate_it", is_flag=True, help="Make it the model that is served.")
@_json_option
def import_(path: Path | None, name: str | None, is_embedded: bool, activate_it: bool, as_json: bool) -> None:
    """Import PATH: a .gguf file, or a folder with safetensors or OpenVINO files."""
    if (path is None) != is_embedded or (is_embedded and name):
        raise click.UsageError("Give either PATH, with or without --name, or --embedded, whose name is fixed.")
    settings = load()
    store = store_of(settings)
    if path is None:
        _arrived(settings, store, bring_embedded(settings, store), activate_it, as_json)
        return
    with recorded_long(settings, "admin.model.import", {"source": path.name}) as details, ShownProgress() as progress:
        folder = store.import_path(path, name, progress=progress)
        details.update(name=folder.name, digest=folder.card().digest)
    _arrived(settings, store, folder, activate_it, as_json)


def bring_embedded(settings: Settings, store: ModelStore) -> ModelFolder:
    """The embedded model in the store; its import is recorded where it was not there yet."""
    from chatsvc.models.supply import embedded

    found = embedded.find(store)
    if found is not None:
        return found
    source: dict[str, object] = {"source": embedded.ORIGIN}
    with recorded_long(settings, "admin.model.import", source) as details, ShownProgress() as progress:
        store = store_of(settings, is_tried=False)  # the very file is pinned and known to serve
        folder = embedded.bring(store, offline=settings.models.offline, progress=progress)
        details.update(name=folder.name, digest=folder.card().digest)
    return folder


@command.command("list")
@_json_option
def list_(as_json: bool) -> None:
    """List the models of this store; a star marks the one that is served."""
    store = store_of(load())
    active = store.active()
    found = [_describe(folder, active is not None and folder.name == active.name) for folder in store.list()]
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if not found:
        click.echo("No models yet: 'chatsvc model fetch qwen/Qwen1.5-0.5B-Chat' or 'chatsvc model import FILE.gguf'.")
    for model in found:
        star = "*" if model["active"] else " "
        kind = f"{model['format']}, sealed" if model.get("sealed") else model.get("format")
        what = f"{kind}, context {model['context_length']}" if model["ok"] else "REFUSED: does not verify"
        click.echo(f"{star} {model['name']}  ({what}, {model['size_mb']} MB)")


@command.command()
@click.argument("name", required=False)
@click.option("--full", is_flag=True, help="Read and hash every file; without it, unchanged size and times may vouch.")
@_json_option
def verify(name: str | None, full: bool, as_json: bool) -> None:
    """Compare a model (all of them without NAME) with its signed manifest, and ask whether it would be served.

    Exit code 1 if one differs or would not.
    """
    settings = load()
    store = store_of(settings)
    results = {}
    with ShownProgress() as progress:
        for folder in [store.get(name)] if name else store.list():
            results[folder.name] = verified(settings, folder, full=full, progress=progress)
    if as_json:
        click.echo(json.dumps([{"name": key, "ok": value == "ok"} for key, value in results.items()]))
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
    help="int4 is smaller and faster, and at this size of model clearly less accurate.",
)
@click.option("--to", "target", help="What to call the result; NAME-int8 or NAME-int4 when not given.")
@click.option("--activate", "activate_it", is_flag=True, help="Make the result the model that is served.")
@_json_option
def convert(
    name: str, weight_format: Literal["int8", "int4"], target: str | None, activate_it: bool, as_json: bool
) -> None:
    """Convert the safetensors model NAME to OpenVINO, for processors without AVX-512 VNNI; needs the torch extra."""
    from chatsvc.models.supply.convert import convert as convert_model

    settings = load()
    store = store_of(settings)
    with recorded_long(settings, "admin.model.convert", {"source": name}) as details, ShownProgress() as progress:
        folder = convert_model(store, name, weight_format, target, progress)
        details.update(name=folder.name, digest=folder.card().digest)
    _arrived(settings, store, folder, activate_it, as_json)


@command.command()
@click.argument("name")
@click.option("--version", help="The revision of NAME; needed to go back to an older model of the same source.")
def activate(name: str, version: str | None) -> None:
    """Verify NAME, have it answer, and make it the model that is served."""
    settings = load()
    click.echo(make_active(settings, store_of(settings), name, version))


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove NAME, which must not be the active model."""
    settings = load()
    store = store_of(settings)
    store.get(name)
    with recorded(settings, "admin.model.remove", {"name": name}):
        store.remove(name)
    click.echo(f"{name} is removed.")


_key_option = click.option(
    "--key-file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The key-encryption key: 32 raw bytes, mode 0400, or '-' for standard input; models.kek_file when not given.",
)


@command.command()
@click.argument("name")
@_key_option
def seal(name: str, key_file: Path | None) -> None:
    """Encrypt the weights of NAME in place; the plaintext is overwritten and removed.

    The key is made with `head -c 32 /dev/urandom > FILE; chmod 0400 FILE`. Who loses it loses the model.
    """
    from chatsvc.models.seal import sealing

    settings = load()
    kek, store = _kek(settings, key_file), store_of(settings)
    store.get(name)
    with recorded_long(settings, "admin.model.seal", {"name": name, "kek_id": kek.id}) as end, ShownProgress() as shown:
        sealing.seal(store, name, kek, shown)
        end["digest"] = store.get(name).card().digest
    click.echo(f"{name} is sealed. To serve it, models.kek_file must name the key; chatsvc keeps no copy of it.")
    click.echo("What you imported it from, and download caches, still hold plaintext: remove them.")


@command.command("unseal-check")
@click.argument("name")
@_key_option
@_json_option
def unseal_check(name: str, key_file: Path | None, as_json: bool) -> None:
    """Unseal NAME in memory to see whether it would load; exit code 1 if it would not."""
    from chatsvc.models.seal import sealing

    settings = load()
    kek = _kek(settings, key_file)
    try:
        sealing.check(store_of(settings), name, kek)
    except ModelRefused as error:
        click.echo(json.dumps({"name": name, "ok": False}) if as_json else f"{name}: {error.message}")
        raise click.exceptions.Exit(1) from error
    click.echo(json.dumps({"name": name, "ok": True}) if as_json else f"{name}: ok")


@command.command("rotate-key")
@click.argument("name")
@_key_option
@click.option(
    "--new-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The key that replaces it: 32 raw bytes, mode 0400.",
)
def rotate_key(name: str, key_file: Path | None, new_key_file: Path) -> None:
    """Give the sealed model NAME another key. Only headers change; the weights are not encrypted anew."""
    from chatsvc.models.seal import sealing
    from chatsvc.models.seal.sealed import read_kek

    settings = load()
    keys, store = (_kek(settings, key_file), read_kek(new_key_file)), store_of(settings)
    store.get(name)
    with recorded(settings, "admin.model.rotate_key", {"name": name, "before": keys[0].id, "after": keys[1].id}) as end:
        sealing.rotate(store, name, keys)
        end["digest"] = store.get(name).card().digest
    click.echo(f"{name} opens with the key in {new_key_file} only. Change models.kek_file before the next start.")


def _kek(settings: Settings, key_file: Path | None) -> KeyEncryptionKey:
    from chatsvc.models.seal.sealed import KEK_BYTES, KeyEncryptionKey, read_kek

    chosen = key_file or settings.models.kek_file
    if chosen is None:
        raise click.UsageError("give --key-file FILE, or set models.kek_file")
    if str(chosen) != "-":
        return read_kek(chosen)
    secret = sys.stdin.buffer.read(KEK_BYTES + 1)
    if len(secret) != KEK_BYTES:
        raise click.UsageError(f"standard input must hold exactly {KEK_BYTES} raw bytes")
    return KeyEncryptionKey(secret)


def _arrived(settings: Settings, store: ModelStore, folder: ModelFolder, activate_it: bool, as_json: bool) -> None:
    told = make_active(settings, store, folder.name, is_tried=True) if activate_it else None
    if as_json:
        click.echo(json.dumps(_describe(folder, activate_it), ensure_ascii=False))
    elif told:
        click.echo(told)
    else:
        click.echo(f"{folder.name} is in the store; serve it with: chatsvc model activate {folder.name}")


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
