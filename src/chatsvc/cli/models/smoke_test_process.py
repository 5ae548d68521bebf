"""``python -m chatsvc.cli.models.smoke_test_process FOLDER NAME``: the child process of a model's smoke test.

Loads model NAME in FOLDER as the engine would, and asks it one question. A model that takes too much memory or crashes
a library ends only this process. Exit code 0: it will be served; 3: it will not, and the last line of the output says
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
_KILLED_FIRST = "1000"  # the highest oom_score_adj


def main() -> int:
    """Run the test; returns the exit code."""
    from chatsvc.chat.smoke_test import check_by_loading
    from chatsvc.models.signing import SigningKeys
    from chatsvc.models.store import ModelFolder

    _yield_to_the_service()
    harden()
    logging.disable(logging.WARNING)
    settings = load()
    path, name = Path(sys.argv[1]), sys.argv[2]
    folder = ModelFolder(path, SigningKeys(settings.keys_directory), settings.models.kek_file, name)
    try:
        check_by_loading(folder, runner_options(settings), settings.chat.system_prompt)
    except ChatsvcError as error:
        sys.stdout.write(f"{error.message}\n")
        return EXIT_COULD_NOT
    except Exception as error:  # noqa: BLE001 - the process' edge: any failure on a hostile file is a refusal
        sys.stdout.write(f"It cannot be loaded: {type(error).__name__}: {str(error)[:300]}\n".replace("\n", " ") + "\n")
        return EXIT_COULD_NOT
    return 0


def _yield_to_the_service() -> None:
    """A service on this machine gets the processor first, and keeps running when memory runs out."""
    os.nice(_NICENESS)
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST, encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
