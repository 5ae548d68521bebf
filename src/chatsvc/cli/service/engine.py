"""``chatsvc engine``: the engine process alone, with the active model."""

from __future__ import annotations

import click

from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.settings.load import Settings, load


@click.command("engine")
def command() -> None:
    """Run the engine process alone (`serve` does this for you).

    Serves the active model on a unix socket. On SIGTERM it finishes what runs, then ends.
    """
    from chatsvc import logs
    from chatsvc.cli.service.serve import active_model
    from chatsvc.engine.engine_side.loop import LoopOptions
    from chatsvc.engine.process import EngineOptions, run

    settings = load()
    logs.configure(settings.logs.level)
    options = EngineOptions(
        socket_path=settings.engine_socket,
        model=active_model(settings),
        runner=runner_options(settings),
        loop=LoopOptions(drain_timeout_s=settings.server.drain_timeout_s),
        load_timeout_s=settings.engine.load_timeout_s,
    )
    raise click.exceptions.Exit(run(options))


def runner_options(settings: Settings) -> RunnerOptions:
    """The runner's part of the configuration."""
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
