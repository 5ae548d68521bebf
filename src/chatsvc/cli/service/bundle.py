"""``chatsvc bundle``: the kit for machines without a network. The work is done in :mod:`chatsvc.kit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from chatsvc.cli.output import ShownProgress
from chatsvc.settings.load import load

_RESOURCES = ("config", "nginx", "systemd", "docs", "compose.yaml", "Dockerfile", "deploy", "constraints.txt")
_prefix_option = click.option(
    "--prefix",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The installation's directory; its home/ holds everything that is not a release.",
)
_public_key_option = click.option(
    "--public-key", help="The builder's public key, in hex or a file; by default this home's own key."
)

_INSTALL_PARAMETERS = (
    click.argument("kit", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    _public_key_option,
    _prefix_option,
    click.option(
        "--systemd",
        type=click.Path(file_okay=False, path_type=Path),
        help="Also write the systemd units there, e.g. /etc/systemd/system; PREFIX/systemd always has them.",
    ),
    click.option("--version", help="The kit's version; needed if it is older than the current release."),
)


def _install_parameters(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the parameters that `install` and `upgrade` share."""
    for parameter in reversed(_INSTALL_PARAMETERS):
        function = parameter(function)
    return function


@click.group("bundle")
def command() -> None:
    """The kit for machines without a network: build, verify, install, upgrade, rollback.

    Where chatsvc is not installed yet, kit_verify.py and kit_install.py in the kit do the same; they only need Python.
    """


@command.command("build")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The archive to write.")
@click.option("--model", "model_name", help="The model of the store to include; the active one by default.")
@click.option("--no-model", is_flag=True, help="Include no model: for an upgrade of the program alone.")
@click.option(
    "--wheel",
    type=click.Path(exists=True, path_type=Path),
    help="chatsvc's wheel; by default built from the checkout.",
)
@click.option("--python", help="The target's Python, e.g. 3.11; this one by default.")
@click.option(
    "--platform", help="The target's platform as pip names it, e.g. manylinux_2_28_x86_64; this one by default."
)
def build_kit(output: Path, model_name: str | None, no_model: bool, wheel: Path | None, **target: str | None) -> None:
    """Write a signed kit: wheels locked by hash, a model, templates, documents, an SBOM and a checklist."""
    from chatsvc.cli.service.serve import active_model
    from chatsvc.kit import build
    from chatsvc.wiring import model_store

    settings = load()
    keys = build.signing_keys(settings.keys_directory)
    resources = {name: path for name in _RESOURCES if (path := _resource(name)) is not None}
    contents = build.Contents(
        wheel=wheel or _checkout(),
        constraints=resources.get("constraints.txt"),
        model=None if no_model else (model_store(settings).get(model_name) if model_name else active_model(settings)),
        resources=resources,
        target=build.Target(**target),
    )
    with ShownProgress() as progress:
        digest = build.build(output, contents, keys, progress)
    click.echo(f"{output}: written. Give these to the receiver separately from the kit:")
    click.echo(f"  SHA-256     {digest}")
    click.echo(f"  public key  {keys.public_bytes().hex()}")


@command.command("verify")
@click.argument("kit", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_public_key_option
def verify_kit(kit: Path, public_key: str | None) -> None:
    """Compare KIT with its signed manifest. If it differs: a list of the differences and exit code 1."""
    from chatsvc.kit import verify

    raise click.exceptions.Exit(verify.main([str(kit), _public_key(public_key)]))


@command.command("install")
@_install_parameters
def install_kit(kit: Path, public_key: str | None, **options: str | Path | None) -> None:
    """Verify KIT and install it under a prefix, without any network; print the next steps."""
    _install("install", kit, public_key, options)


@command.command()
@_install_parameters
def upgrade(kit: Path, public_key: str | None, **options: str | Path | None) -> None:
    """Verify KIT and make it the current release; home/ stays unchanged. Restart the service afterwards."""
    _install("upgrade", kit, public_key, options)


def _install(verb: str, kit: Path, public_key: str | None, options: dict[str, str | Path | None]) -> None:
    from chatsvc.kit import install

    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    raise click.exceptions.Exit(install.main([verb, str(kit), _public_key(public_key), *given]))


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
        raise click.UsageError("No kit was built in this home: give the builder's --public-key.")
    return keys.public_bytes().hex()


def _checkout() -> Path:
    from chatsvc.resources import resource_path

    try:
        return resource_path("pyproject.toml").parent
    except FileNotFoundError as error:
        raise click.UsageError("This is not a checkout: give chatsvc's own wheel with --wheel.") from error


def _resource(name: str) -> Path | None:
    from chatsvc.resources import resource_path

    try:
        return resource_path(name)
    except FileNotFoundError:
        return None
