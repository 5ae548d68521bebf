"""``python -m chatsvc.cli.models.smoke_test_process FOLDER NAME``: loads model NAME in FOLDER as the engine would, and asks it.

Run by :mod:`chatsvc.cli.models.smoke_test`, in a process of its own: a model that takes too much memory or crashes a
library takes nothing else along. Exit code 0: it will be served; 3: it will not, and the last line of the output says
why.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from chatsvc.cli.main import EXIT_COULD_NOT
from chatsvc.cli.service.engine import runner_options
from chatsvc.engine.process import harden
from chatsvc.errors import ChatsvcError
from chatsvc.settings.load import load

_NICENESS = 10
_FIRST_TO_GO = "1000"


def main() -> int:
    """Returns the exit code."""
    from chatsvc.chat.trial import try_out
    from chatsvc.models.signing import SigningKeys
    from chatsvc.models.store import ModelFolder

    _step_back()
    harden()
    logging.disable(logging.WARNING)
    settings = load()
    path, name = Path(sys.argv[1]), sys.argv[2]
    folder = ModelFolder(path, SigningKeys(settings.keys_directory), settings.models.kek_file, name)
    try:
        try_out(folder, runner_options(settings), settings.chat.system_prompt)
    except ChatsvcError as error:
        sys.stdout.write(f"{error.message}\n")
        return EXIT_COULD_NOT
    except Exception as error:  # noqa: BLE001 - the process' edge: whatever a hostile file provokes is a refusal
        sys.stdout.write(f"It cannot be loaded: {type(error).__name__}: {str(error)[:300]}\n".replace("\n", " ") + "\n")
        return EXIT_COULD_NOT
    return 0


def _step_back() -> None:
    """A service that runs on this machine goes first: for the processor, and when memory runs out."""
    os.nice(_NICENESS)
    Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
