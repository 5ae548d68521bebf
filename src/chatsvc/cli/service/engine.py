"""``chatsvc engine``: the engine process alone, with the active model of this configuration."""

from __future__ import annotations

import click

from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.settings.load import Settings, load


@click.command("engine")
def command() -> None:
    """Run the engine process alone (what `serve` does for you).

    It serves the model that is active now on a unix socket, and ends when it has drained after SIGTERM.
    """
    from chatsvc import logs
    from chatsvc.cli.service.serve import require_model
    from chatsvc.engine.engine_side.loop import LoopOptions
    from chatsvc.engine.process import EngineOptions, run
    from chatsvc.models.store import ModelStore

    settings = load()
    logs.configure(settings.logs.level)
    require_model(settings)
    model = ModelStore(settings.models_directory, settings.keys_directory, settings.models.kek_file).active()
    assert model is not None
    options = EngineOptions(
        socket_path=settings.engine_socket,
        model=model,
        runner=runner_options(settings),
        loop=LoopOptions(drain_timeout_s=settings.server.drain_timeout_s),
        load_timeout_s=settings.engine.load_timeout_s,
    )
    raise click.exceptions.Exit(run(options))


def runner_options(settings: Settings) -> RunnerOptions:
    """The part of the configuration that a runner is told."""
    return RunnerOptions(
        kind=settings.engine.runner,
        max_num_seqs=settings.engine.max_num_seqs,
        cache_size_gb=settings.engine.cache_size_gb,
        prefill_chunk_tokens=settings.engine.prefill_chunk_tokens,
        num_threads=settings.engine.num_threads,
        max_gap_ms=settings.engine.max_gap_ms,
        memory_limit_mb=settings.engine.memory_limit_mb,
        max_draft_tokens=settings.engine.max_draft_tokens,
        dynamic_quantization_group=settings.engine.dynamic_quantization_group,
    )
