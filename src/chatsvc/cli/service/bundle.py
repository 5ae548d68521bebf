"""``chatsvc bundle``: the kit for machines without a network. Only building is here; the rest is in chatsvc.kit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chatsvc.settings.load import Settings, load

if TYPE_CHECKING:
    from chatsvc.models.store import ModelFolder

_RESOURCES = ("config", "nginx", "systemd", "docs", "compose.yaml", "Dockerfile", "deploy", "constraints.txt")
_prefix_option = click.option(
    "--prefix",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where it is installed; its home/ holds everything that is not a release.",
)
_public_key_option = click.option(
    "--public-key", help="Of who built the kit, in hex or a file; this home's own key when not given."
)

_version_option = click.option("--version", help="The kit's version; needed where it is older than the current one.")
_systemd_option = click.option(
    "--systemd",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the systemd units there as well, e.g. /etc/systemd/system; they are in PREFIX/systemd anyway.",
)


@click.group("bundle")
def command() -> None:
    """The kit for machines without a network: build, verify, install, upgrade, rollback.

    Where chatsvc is not installed yet, the same is done by kit_verify.py and kit_install.py, which are in the kit and
    need nothing but Python.
    """


@command.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The archive to write.")
@click.option("--model", "model_name", help="Which model of the store goes along; the active one when not given.")
@click.option("--no-model", is_flag=True, help="No model: for an upgrade of the program alone.")
@click.option(
    "--wheel", type=click.Path(exists=True, path_type=Path), help="chatsvc's own wheel; built from the checkout if not."
)
@click.option("--python", help="The target's Python, e.g. 3.11; this one's when not given.")
@click.option(
    "--platform", help="The target's platform as pip names it, e.g. manylinux_2_28_x86_64; this one's if not."
)
def build(output: Path, model_name: str | None, no_model: bool, wheel: Path | None, **target: str | None) -> None:
    """Write a signed kit: wheels locked by hash, a model, templates, documents, a parts list and a checklist."""
    from chatsvc.cli.output import ShownProgress
    from chatsvc.kit import build, install, verify

    settings = load()
    keys = build.signing_keys(settings.keys_directory)
    resources = {name: path for name in _RESOURCES if (path := _resource(name)) is not None}
    contents = build.Contents(
        wheel=wheel or _checkout(),
        constraints=resources.get("constraints.txt"),
        model=None if no_model else _chosen_model(settings, model_name),
        resources=resources,
        programs={"kit_verify.py": Path(verify.__file__), "kit_install.py": Path(install.__file__)},
        target=build.Target(**target),
    )
    with ShownProgress() as progress:
        digest = build.build(output, contents, keys, progress)
    click.echo(f"{output}: written. Tell the receiver by another way than the kit:")
    click.echo(f"  SHA-256     {digest}")
    click.echo(f"  public key  {keys.public_bytes().hex()}")


@command.command()
@click.argument("kit", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_public_key_option
def verify(kit: Path, public_key: str | None) -> None:
    """Compare KIT with its signed manifest; exit code 1, and a list of what differs, when it is not what was signed."""
    from chatsvc.kit import verify

    raise click.exceptions.Exit(verify.main([str(kit), _public_key(public_key)]))


@command.command()
@click.argument("kit", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_public_key_option
@_prefix_option
@_systemd_option
@_version_option
def install(kit: Path, public_key: str | None, prefix: Path, systemd: Path | None, version: str | None) -> None:
    """Verify KIT and install it under a prefix, without any network; print the next steps."""
    _bring("install", kit, public_key, prefix, _more(systemd, version))


@command.command()
@click.argument("kit", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_public_key_option
@_prefix_option
@_systemd_option
@_version_option
def upgrade(kit: Path, public_key: str | None, prefix: Path, systemd: Path | None, version: str | None) -> None:
    """Verify KIT and make it the current release; everything in home/ stays. Restart the service afterwards."""
    _bring("upgrade", kit, public_key, prefix, _more(systemd, version))


def _more(systemd: Path | None, version: str | None) -> list[str]:
    """The options that were given."""
    given = {"--systemd": systemd, "--version": version}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _bring(verb: str, kit: Path, public_key: str | None, prefix: Path, more: list[str]) -> None:
    from chatsvc.kit import install

    arguments = [verb, str(kit), _public_key(public_key), "--prefix", str(prefix), *more]
    raise click.exceptions.Exit(install.main(arguments))


@command.command()
@_prefix_option
def rollback(prefix: Path) -> None:
    """Make the previous release the current one again. Stop the service first."""
    from chatsvc.kit import install

    raise click.exceptions.Exit(install.main(["rollback", "--prefix", str(prefix)]))


def _public_key(given: str | None) -> str:
    from chatsvc.kit import build

    if given:
        return given
    keys = build.signing_keys(load().keys_directory)
    if not keys.public_file.exists():
        raise click.UsageError("No kit was built in this home: give --public-key of who built this one.")
    return keys.public_bytes().hex()


def _chosen_model(settings: Settings, name: str | None) -> ModelFolder:
    from chatsvc.models.store import ModelStore

    store = ModelStore(settings.models_directory, settings.keys_directory, settings.models.kek_file)
    chosen = store.get(name) if name else store.active()
    if chosen is None:
        raise click.UsageError("no model is active: give --model NAME, or --no-model for the program alone")
    return chosen


def _checkout() -> Path:
    from chatsvc.resources import resource_path

    try:
        return resource_path("pyproject.toml").parent
    except FileNotFoundError as error:
        raise click.UsageError("this is not a checkout: give chatsvc's own wheel with --wheel") from error


def _resource(name: str) -> Path | None:
    from chatsvc.resources import resource_path

    try:
        return resource_path(name)
    except FileNotFoundError:
        return None
