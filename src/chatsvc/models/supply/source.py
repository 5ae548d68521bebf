"""Fetches a model from ModelScope by its id, e.g. ``qwen/Qwen1.5-0.5B-Chat``, and imports it.

modelscope's own ``snapshot_download`` does the transfer: it resumes, checks SHA-256, keeps its cache, and honours
``MODELSCOPE_ENDPOINT`` (an internal mirror). Only weight formats that cannot run code, and small text files, are
requested.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsvc.disk.files import Progress, no_progress
from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder, ModelStore

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_TEXT_PATTERNS = ("*.json", "*.txt", "*.jinja")
# All quantisations of a GGUF repository would be many GB: fetch one. int8 keeps the original's quality.
_DEFAULT_GGUF = ("*q8_0.gguf", "*Q8_0.gguf")


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of a fetch.

    Attributes:
        revision: branch, tag or commit; None for the default branch.
        file: which GGUF file of the repository, as a pattern such as ``*q4_k_m.gguf``.
        offline: use only what modelscope has in its cache.
        endpoint: another server with ModelScope's API; None for modelscope's configured one.
        cache: modelscope's cache folder; None for its default.
    """

    revision: str | None = None
    file: str | None = None
    offline: bool = False
    endpoint: str | None = None
    cache: Path | None = None


def fetch(
    store: ModelStore,
    model_id: str,
    name: str | None = None,
    options: FetchOptions | None = None,
    progress: Progress = no_progress,
) -> ModelFolder:
    """Fetch and import. An interrupted fetch resumes.

    Raises:
        OperatorError: no network, no such model, or an unsupported one; the message names the remedy.
    """
    chosen = options or FetchOptions()
    if not is_model_id(model_id):
        raise OperatorError(f"{model_id!r} is not a model id; write OWNER/NAME, e.g. qwen/Qwen1.5-0.5B-Chat")
    store.check_free(name or default_name(model_id))
    snapshot = _download(model_id, chosen, progress)
    origin = f"modelscope {model_id}@{chosen.revision or 'master'}"
    source = _only_gguf(snapshot, chosen) or snapshot
    return store.import_path(source, name or default_name(model_id), origin=origin, progress=progress)


def is_model_id(text: str) -> bool:
    """Whether it is ``OWNER/NAME``."""
    return _MODEL_ID.fullmatch(text) is not None


def default_name(model_id: str) -> str:
    """``qwen/Qwen1.5-0.5B-Chat-GGUF`` -> ``qwen1.5-0.5b-chat-gguf``."""
    return model_id.rpartition("/")[2].lower()


def patterns(model_id: str, file: str | None) -> list[str]:
    """The file patterns to request: never a pickle, never code."""
    if file is not None:
        if not file.lower().endswith((".gguf", ".safetensors")):
            raise OperatorError("--file takes a pattern that ends in .gguf or .safetensors; nothing else is opened")
        return [file, *_TEXT_PATTERNS]
    if model_id.lower().endswith("gguf"):
        return [*_DEFAULT_GGUF, *_TEXT_PATTERNS]
    return ["*.safetensors", *_TEXT_PATTERNS]


def _only_gguf(snapshot: Path, options: FetchOptions) -> Path | None:
    """The one requested file: the cache may hold files of earlier fetches."""
    if options.file is None:
        return None
    found = sorted(snapshot.glob(options.file))
    return found[0] if found and found[0].suffix == ".gguf" else None


def _download(model_id: str, options: FetchOptions, progress: Progress) -> Path:
    import requests  # noqa: PLC0415  a second of import that only a fetch needs
    from modelscope.hub.snapshot_download import snapshot_download  # noqa: PLC0415
    from modelscope_hub.errors import CacheError, HubError  # noqa: PLC0415

    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    wanted = patterns(model_id, options.file)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars would overwrite ours
            folder = snapshot_download(
                model_id,
                revision=options.revision,
                cache_dir=options.cache,
                local_files_only=options.offline,
                allow_patterns=wanted,
                endpoint=options.endpoint,
                progress_callbacks=[_reporter(progress)],
            )
    except CacheError as error:
        raise OperatorError(_offline_message(model_id)) from error
    except requests.HTTPError as error:
        raise OperatorError(
            f"{model_id}: the server refused it ({_first_line(error)}); check the id and the revision"
        ) from error
    except (HubError, requests.RequestException, OSError) as error:
        raise OperatorError(_failed_message(model_id, options, error)) from error
    if not any(Path(folder).glob("*.safetensors")) and not any(Path(folder).glob("*.gguf")):
        raise OperatorError(f"{model_id}: has no file that matches {' or '.join(wanted[:2])}; name one with --file")
    return Path(folder)


def _offline_message(model_id: str) -> str:
    return (
        f"{model_id} is not in modelscope's cache, and fetching offline was asked for (models.offline or --offline). "
        "Fetch it on a machine with a network, copy the folder here and run: chatsvc model import FOLDER"
    )


def _failed_message(model_id: str, options: FetchOptions, error: Exception) -> str:
    if options.offline:
        return _offline_message(model_id)
    cause = _first_line(error)
    return (
        f"{model_id} cannot be fetched ({cause}). Check the network, or set MODELSCOPE_ENDPOINT to a mirror, and run "
        "the same command again (it resumes), or import a copy: chatsvc model import FOLDER"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition(" (Caused by")[0].partition("\n")[0] or type(error).__name__


def _reporter(progress: Progress) -> type[Any]:
    """A class: modelscope instantiates it for each file."""
    from modelscope_hub._download import ProgressCallback  # noqa: PLC0415

    class Reporter(ProgressCallback):
        """Forwards modelscope's progress."""

        done = 0

        def update(self, size: int) -> None:
            """``size`` more bytes have arrived."""
            self.done += size
            progress(f"fetching {self.filename}", self.done, self.file_size)

    return Reporter
