"""The model store: one folder a model, and ``current``, a symbolic link to the one that is served.

::

    models/
      current -> smollm2-135m-instruct
      smollm2-135m-instruct/
        model.json  tokenizer.json  chat_template.jinja  manifest.json   always
        model.gguf | openvino_model.xml .bin | model.safetensors config.json

A model is added atomically: complete, with a signed manifest, or not at all. ``current`` is switched by one rename.
Knows nothing about where models come from or who serves them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from chatsvc.disk.durable import rename, swap_link
from chatsvc.disk.files import Progress, make_private_folder, no_progress, temporary_folder
from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models import description, manifest, rollback
from chatsvc.models.card import ModelCard
from chatsvc.models.description import DESCRIPTION_FILE, TEMPLATE_FILE, TOKENIZER_FILE, ModelDescription, check_name
from chatsvc.models.manifest import Manifest
from chatsvc.models.seal.sealed import Owner, read_kek
from chatsvc.models.seal.unsealing import Plain, copied, unsealed
from chatsvc.models.signing import SigningKeys
from chatsvc.models.supply.importing import GGUF_WEIGHTS, Label, import_into, suggested_name
from chatsvc.models.text.files import MAX_SMALL_BYTES, MAX_TOKENIZER_BYTES

CURRENT = "current"
MAX_GRAPH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model of the store. Everything it returns was verified against the signed manifest first.

    Args:
        path: the folder. Its name is the model's, except while the model is being built: then ``new_name`` is.
        keys: verifies the manifest.
        kek_file: the key of sealed weights, 32 raw bytes; read only when sealed weights are opened.
    """

    path: Path
    keys: SigningKeys
    kek_file: Path | None = None
    new_name: str = ""

    @property
    def name(self) -> str:
        """The name in the store and on the wire."""
        return self.new_name or self.path.name

    @property
    def format(self) -> str:
        """``gguf``, ``openvino`` or ``safetensors``."""
        return self.description().format

    def description(self) -> ModelDescription:
        """``model.json``.

        Raises:
            ModelRefused: it differs from its signed manifest.
        """
        signed, _ = self._manifest()
        return self._description(signed)

    def card(self) -> ModelCard:
        """What the web process needs to know of the model.

        Raises:
            ModelRefused: one of its files differs from the signed manifest.
        """
        signed, digest = self._manifest()
        tokenizer_json = manifest.read_checked(self.path, signed, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
        template = manifest.read_checked(self.path, signed, TEMPLATE_FILE, MAX_SMALL_BYTES)
        return self._description(signed).card(digest, tokenizer_json, template.decode())

    def verify(self, *, full: bool = False, progress: Progress = no_progress) -> None:
        """Compare every file with the manifest. Without ``full``, files of unchanged size and times are not hashed.

        Raises:
            ModelRefused: at any difference.
        """
        signed, _ = self._manifest()
        manifest.check(self.path, signed, full=full, progress=progress)
        self._description(signed)

    @contextlib.contextmanager
    def weights(self) -> Iterator[Path]:
        """Verify the folder, then yield the path that a runner opens: the ``.gguf`` file, or a folder.

        The path is valid within the context. Sealed weights are always verified in full, and unsealed into memory only.

        Raises:
            ModelRefused: the folder differs from its manifest, or the key is not the right one.
        """
        signed, _ = self._manifest()
        found = self._description(signed)
        with self._opened(signed, found) as folder:
            yield folder / GGUF_WEIGHTS if found.format == "gguf" else folder

    def _opened(self, signed: Manifest, found: ModelDescription) -> AbstractContextManager[Path]:
        """The folder itself, or one in memory. Verified."""
        if found.sealed:
            return self._hashed_and_unsealed(signed, found)
        manifest.check(self.path, signed, full=False)
        if found.format == "gguf" and not os.access(self.path / GGUF_WEIGHTS, os.W_OK):
            return copied(self.path / GGUF_WEIGHTS)
        return contextlib.nullcontext(self.path)

    @contextlib.contextmanager
    def _hashed_and_unsealed(self, signed: Manifest, found: ModelDescription) -> Iterator[Path]:
        """Hash and unseal in parallel; yield the path when both have succeeded."""
        with contextlib.ExitStack() as stack:
            with ThreadPoolExecutor(1) as hashing:
                checked = hashing.submit(manifest.check, self.path, signed, full=True)
                folder = stack.enter_context(self._unsealed(signed, found))
            checked.result()
            yield folder

    def _unsealed(self, signed: Manifest, found: ModelDescription) -> AbstractContextManager[Path]:
        """The unsealed files in memory. The plain ones are hashed while they are read."""
        plain = [
            Plain(entry.path, manifest.read_checked(self.path, signed, entry.path, MAX_GRAPH_BYTES))
            for entry in signed.files
            if entry.path.endswith((".xml", ".json")) and entry.path not in {DESCRIPTION_FILE, TOKENIZER_FILE}
        ]
        try:
            kek = read_kek(self.kek_file or Path())
        except OperatorError as error:
            raise ModelRefused from error
        return unsealed(self.path, found.weights, plain, Owner(self.name, found.revision), kek)

    def _manifest(self) -> tuple[Manifest, str]:
        signed, digest = manifest.read(self.path, self.keys)
        if signed.name != self.name:  # another model's folder was moved to this name
            raise ModelRefused
        return signed, digest

    def _description(self, signed: Manifest) -> ModelDescription:
        content = manifest.read_checked(self.path, signed, DESCRIPTION_FILE, MAX_SMALL_BYTES)
        decoded = description.decode(content)
        if decoded.name != self.name:
            raise ModelRefused
        return decoded


Trial = Callable[[ModelFolder, Progress], None]


class ModelStore:
    """The folder of models.

    Args:
        root: created at the first import.
        keys: the folder of the signing key.
        kek_file: the key of sealed weights (``models.kek_file``); needed only to open them.
        trial: called for each new model. Where it raises OperatorError, the model is not added.
    """

    def __init__(self, root: Path, keys: Path, kek_file: Path | None = None, trial: Trial | None = None) -> None:
        self.root = root
        self.keys = SigningKeys(keys)
        self._kek_file = kek_file
        self._trial = trial

    def list(self) -> list[ModelFolder]:
        """All models, by name; without folders that are still being built."""
        if not self.root.is_dir():
            return []
        return [
            ModelFolder(path, self.keys, self._kek_file)
            for path in sorted(self.root.iterdir())
            if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
        ]

    def get(self, name: str) -> ModelFolder:
        """One model.

        Raises:
            OperatorError: there is none of this name.
        """
        path = self.root / check_name(name)
        if not path.is_dir() or path.is_symlink():
            known = ", ".join(folder.name for folder in self.list()) or "none yet"
            raise OperatorError(f"there is no model {name!r} in {self.root}; there are: {known}")
        return ModelFolder(path, self.keys, self._kek_file)

    def active(self) -> ModelFolder | None:
        """The model that ``current`` points to; None where none was activated.

        Raises:
            OperatorError: it points to something that is not a model of the store.
        """
        link = self.root / CURRENT
        if not link.is_symlink():
            return None
        target = link.readlink()
        if len(target.parts) != 1:
            raise OperatorError(f"{link} points out of the store; run: chatsvc model activate NAME")
        return self.get(target.name)

    def activate(self, name: str, version: str | None = None) -> ModelFolder:
        """Verify the model and point ``current`` to it; the engine loads it at its next start.

        Raises:
            ModelRefused: it differs from its signed manifest.
            OlderModel: it is older than the active one of its line, and ``version`` does not name it.
        """
        folder = self.get(name)
        folder.verify()
        rollback.check(self._active_description(), folder.description(), version)
        swap_link(self.root / CURRENT, folder.name)
        return folder

    def _active_description(self) -> ModelDescription | None:
        with contextlib.suppress(OperatorError):  # it does not verify, so its age is unknown
            return active.description() if (active := self.active()) else None
        return None

    def import_path(
        self,
        source: Path,
        name: str | None = None,
        *,
        revision: str = "",
        origin: str = "",
        progress: Progress = no_progress,
    ) -> ModelFolder:
        """Import a ``.gguf`` file or a folder as model ``name``.

        Raises:
            OperatorError: the name is taken, or the source is not a model that can be served.
        """
        name = check_name(name or suggested_name(source))
        label = Label(name=name, created=int(time.time()), revision=revision, source=origin)
        with self.new_folder(name, progress) as folder:
            import_into(folder, source, label, progress)
        return self.get(name)

    @contextlib.contextmanager
    def new_folder(self, name: str, progress: Progress = no_progress) -> Iterator[Path]:
        """Yield an empty folder to fill. When the context ends without error, it is signed and becomes ``name``.

        Raises:
            OperatorError: the name is taken.
        """
        self.check_free(name)
        make_private_folder(self.root)
        with temporary_folder(self.root) as folder:
            yield folder
            manifest.write(folder, name, self.keys, progress)
            if self._trial is not None:
                self._trial(ModelFolder(folder, self.keys, self._kek_file, name), progress)
            self.check_free(name)
            rename(folder, self.root / name)

    def remove(self, name: str) -> None:
        """Remove a model that is not the active one.

        Raises:
            OperatorError: it is active.
        """
        folder = self.get(name)
        link = self.root / CURRENT
        if link.is_symlink() and link.readlink().name == name:
            raise OperatorError(f"{name} is the active model; activate another one first")
        gone = self.root / f".removed-{secrets.token_hex(6)}"
        rename(folder.path, gone)  # from here on it is not in the store, even if the removal is interrupted
        shutil.rmtree(gone)

    def check_free(self, name: str) -> None:
        """Check that the name is free.

        Raises:
            OperatorError: it is taken.
        """
        if (self.root / name).exists() or (self.root / name).is_symlink():
            raise OperatorError(f"there is already a model {name!r}; remove it first, or give another --name")
