"""Prepares the web side for a new model in a thread of its own. Knows nothing about what is prepared."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from chatsvc.engine.web_side.link import Link
from chatsvc.models.card import ModelCard

_log = logging.getLogger(__name__)


class Preparation:
    """Runs ``prepare`` for a link's card in a thread. It may take long: a model's chat template is a program."""

    def __init__(self, link: Link, prepare: Callable[[ModelCard], None], wake: Callable[[], None]) -> None:
        self.link = link
        self.failed = False
        self._prepare = prepare
        self._wake = wake
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-prepare", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether ``failed`` says the result."""
        return self._done.is_set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._prepare(self.link.card)
        except Exception:  # noqa: BLE001 - the thread's edge: a card that cannot be used must not end the client
            _log.exception("the model %s cannot be served", self.link.card.name)
            self.failed = True
        self._done.set()
        self._wake()
