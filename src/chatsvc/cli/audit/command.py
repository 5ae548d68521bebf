"""``chatsvc audit``: verify, show, export and prune the audit log, and handle the auditor's keys.

Reads only ``CHATSVC_HOME``, which may be a copy. Verifying and showing need no secret.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chatsvc.cli.audit.show import show
from chatsvc.settings.load import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatsvc.audit.verify.log import Trust
    from chatsvc.audit.verify.prune import Pruned
    from chatsvc.audit.verify.verdict import Verdict

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def command() -> None:
    """The audit log: verify, show, export, prune; the auditor's keys."""


command.add_command(show)


@command.command()
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--witness",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoints kept by a witness.",
)
@click.option("--key", type=_FILE, multiple=True, help="Trust only these public keys; by default those in keys/.")
@click.option(
    "--seal-key", type=_FILE, multiple=True, help="A log's first sealing key; by default those in for-auditor/."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path | None,
    *,
    witness: Path | None,
    key: tuple[Path, ...],
    seal_key: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Verify the log of CHATSVC_HOME, or FILE (a log's directory, a segment, an export).

    Trusts the public keys in CHATSVC_HOME/keys, or those of --key; never those beside the log or in an export.

    \b
    Exit codes: 0 clean; 1 tampered, or audit.vkey names an untrusted key;
    4 the last line is incomplete; 5 fewer records than a checkpoint or witness states;
    6 signed by an untrusted key; 3 the verification could not be done.
    """  # noqa: D301  (\b, the character, keeps click from joining the lines)
    from chatsvc.audit.verify.verdict import worst

    verdicts = _verdicts(file, _trust(witness, key, seal_key or _own_seal_keys(file)))
    if as_json:
        click.echo(json.dumps({"exit_code": worst(verdicts), "logs": [each.as_json() for each in verdicts]}, indent=2))
    else:
        for each in verdicts:
            click.secho(f"{each.what}: {each.message}", fg="red" if each.exit_code else "green")
            for named in each.vouched:
                click.echo(f"  trusted key ({'--key' if key else 'keys/'}): {named}")
            for named in each.unvouched:
                click.secho(f"  UNTRUSTED key: {named}", fg="red")
    ctx.exit(worst(verdicts))


def _own_seal_keys(file: Path | None) -> tuple[Path, ...]:
    """First sealing keys that are still on this machine: with them, every record's MAC is checked by default."""
    from chatsvc.audit.keys import initial_seals

    found = initial_seals(load().keys_directory) if file is None else []
    return tuple(path for path in found if os.access(path, os.R_OK))


def _trust(witness: Path | None, keys: tuple[Path, ...], seal_keys: tuple[Path, ...]) -> Trust:
    from chatsvc.audit.format.notes import read_vkeys
    from chatsvc.audit.format.ratchet import parse_seal_key
    from chatsvc.audit.keys import trusted_keys
    from chatsvc.audit.verify.log import Trust
    from chatsvc.audit.witness.seen import Seen

    return Trust(
        keys=tuple(key for path in keys for key in read_vkeys(path)),
        home=frozenset() if keys else trusted_keys(load().keys_directory),
        seal_keys=tuple(parse_seal_key(path.read_text(encoding="utf-8", errors="replace")) for path in seal_keys),
        witness=Seen.read(witness) if witness else None,
    )


def _verdicts(file: Path | None, trust: Trust) -> list[Verdict]:
    from chatsvc.audit.format.layout import logs
    from chatsvc.audit.verify.export_check import is_export, verify_export
    from chatsvc.audit.verify.log import verify_segment, verify_tree
    from chatsvc.errors import OperatorError

    if file is not None and file.is_file():
        if is_export(file):
            return [verify_export(file, trust)]
        return [verify_segment(file, load().audit_directory, trust)]
    directory = file or load().audit_directory
    if not logs(directory) and trust.witness is None:
        raise OperatorError(f"There is no audit log in {directory}; set CHATSVC_HOME or name the log.")
    return verify_tree(directory, trust)


@command.command()
@click.option("--from", "start", required=True, metavar="T", help="Start: a UTC day or time, such as 2026-11-22T12:00.")
@click.option("--to", "end", required=True, metavar="T", help="End, exclusive.")
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
def export(start: str, end: str, output: Path) -> None:
    """Write records and proofs to one signed file, which `verify` accepts on a machine without the log."""
    from chatsvc.audit.keys import PUBLIC_KEYS
    from chatsvc.audit.verify.export import Span
    from chatsvc.audit.verify.export import export as pieces_of
    from chatsvc.disk.durable import rename, sync_file

    settings = load()
    span = Span(_microseconds(start), _microseconds(end), time.time_ns() // 1000)
    if span.start_us > span.end_us:
        raise click.UsageError("--from must not be later than --to.")
    draft = output.with_name(f".{output.name}.part")
    pieces = pieces_of(settings.audit_directory, settings.keys_directory, span)
    with draft.open("wb") as file:
        file.writelines(pieces)
    sync_file(draft)
    rename(draft, output)
    size = output.stat().st_size
    click.echo(f"{output}: {size} bytes; verify it elsewhere with: chatsvc audit verify {output.name} --key AUDIT.VKEY")
    public = settings.keys_directory / PUBLIC_KEYS
    click.echo(f"AUDIT.VKEY is a copy of {public}; send it to the auditor separately from the export.")


def _microseconds(text: str) -> int:
    from chatsvc.audit.verify.export import parse_moment

    try:
        return parse_moment(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day or a time, such as 2026-11-22 or 2026-11-22T12:00") from None


@command.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.pass_context
def prune(ctx: click.Context, *, dry_run: bool) -> None:
    """Remove segments older than audit-policy.toml says (at least 180 days); a signed tombstone replaces them."""
    from chatsvc.audit.format.layout import logs
    from chatsvc.audit.verify.prune import NotPruned, prunable, read_policy
    from chatsvc.audit.verify.prune import prune as prune_log
    from chatsvc.resources import resource_path

    settings = load()
    own = settings.home / "audit-policy.toml"
    days = read_policy(own if own.exists() else resource_path("config/audit-policy.toml"))
    now_us = time.time_ns() // 1000
    roots = [each for each in (settings.audit_directory, settings.audit.second_directory) if each is not None]
    for log in [log for root in roots for log in logs(root)]:
        old = prunable(log, days, now_us)
        click.echo(f"{log}: {len(old)} segments are older than {days} days")
        if not old or dry_run:
            continue
        try:
            _prune_recorded(settings, partial(prune_log, log, settings.keys_directory, days, now_us))
        except NotPruned as error:
            click.echo(f"chatsvc: {error.message}", err=True)
            ctx.exit(error.verdict.exit_code)


def _prune_recorded(settings: Settings, act: Callable[[], Pruned | None]) -> None:
    """Prune inside a record: it begins before anything is removed."""
    from dataclasses import asdict

    from chatsvc.cli.audit.recording import recorded

    with recorded(settings, "audit.prune", {}) as details:
        pruned = act()
        details.update(asdict(pruned) if pruned else {})
    if pruned:
        click.echo(f"removed {len(pruned.segments)} segments, records 0 to {pruned.num_records - 1}")


@command.command("seal-key")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Move the keys to this directory, best on a removable disk."
)
@click.option("--drop", is_flag=True, help="Destroy the keys: then the seals can be neither checked nor forged.")
def seal_key(output: Path | None, *, drop: bool) -> None:
    """Take the logs' first sealing keys off this machine: only then are past records protected by the seal.

    --output also writes the public keys there; the auditor gives both to `verify`.
    """
    from chatsvc.audit import keys
    from chatsvc.cli.audit.recording import recorded
    from chatsvc.errors import OperatorError

    if (output is None) is not drop:
        raise click.UsageError("Give either --output or --drop.")
    settings = load()
    if not keys.initial_seals(settings.keys_directory):
        raise OperatorError("There is no first sealing key here: it was removed already, or no log was begun.")
    with recorded(settings, "audit.seal_key", {"dropped": drop}) as details:
        found = keys.initial_seals(settings.keys_directory)  # again: this record may have begun a log
        details["files"] = [path.name for path in found]
        for path in found:
            if output is None:
                keys.drop(path)
                click.echo(f"{path.name}: destroyed")
            else:
                kept = keys.move_to_auditor(path, output)
                click.echo(f"{kept}: keep it for `verify --seal-key`. It is no longer in {path.parent}.")
    if output is not None:
        _write_public_keys(settings, output)


def _write_public_keys(settings: Settings, output: Path) -> None:
    from chatsvc.audit.format.layout import VKEY
    from chatsvc.audit.format.notes import format_vkey
    from chatsvc.audit.keys import public_keys
    from chatsvc.disk.durable import replace_file

    named = public_keys(settings.keys_directory, settings.audit_directory)
    lines = "".join(f"{format_vkey(key)}\n" for key in named)
    replace_file(output / VKEY, lines.encode(), 0o444)
    click.echo(f"{output / VKEY}: the public keys, for `verify --key`.")
    for key in named:
        click.echo(f"  {key.name} {key.fingerprint}")


@command.command("auditor-key")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The directory for the two files.")
def auditor_key(output: Path) -> None:
    """Make an auditor's key pair for audit.level = "sealed". Run it on the machine that keeps the private key."""
    from chatsvc.audit.write.contents import make_auditor_key
    from chatsvc.disk.durable import write_file
    from chatsvc.errors import OperatorError

    private_file, public_file = output / "auditor.pem", output / "auditor.pub.pem"
    for path in (private_file, public_file):
        if path.exists():
            raise OperatorError(f"{path} exists already.")
    private, public = make_auditor_key()
    write_file(private_file, private, 0o400)
    write_file(public_file, public, 0o444)
    click.echo(f"{public_file}: set audit.auditor_key_file to a copy of it; keep auditor.pem secret.")


@command.command()
@click.argument("file", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="The auditor's private key, PEM.")
def unseal(file: Path, key: Path) -> None:
    """Print the contents of the sealed records of FILE (a segment or an export), one JSON object a line."""
    from chatsvc.audit.format.record import decode
    from chatsvc.audit.format.segment import whole_lines
    from chatsvc.audit.write.contents import read_private
    from chatsvc.audit.write.contents import unseal as open_content

    private = read_private(key)
    for line in whole_lines(file):
        record = decode(line)
        if "content_sealed" in record:
            about = {name: record[name] for name in ("seq", "ts", "actor", "request_id")}
            click.echo(json.dumps({**about, "content": open_content(record, private)}, ensure_ascii=False))
