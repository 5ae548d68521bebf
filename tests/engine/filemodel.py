"""A model on disk without the model store: what `engine.process.run` needs of one. Also runs as an engine process."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chatsvc.engine.engine_side.loop import LoopOptions
from chatsvc.engine.process import EngineOptions, run
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.models.card import ModelCard


def make_card(name: str = "tiny", eos_token_ids: tuple[int, ...] = (2,), context_length: int = 2048) -> ModelCard:
    return ModelCard(
        name=name,
        digest="0" * 64,
        revision="test",
        created=1_700_000_000,
        context_length=context_length,
        eos_token_ids=list(eos_token_ids),
        tokenizer_json=b"{}" * 300_000,
        chat_template="",
    )


@dataclass(frozen=True)
class FileModel:
    path: Path
    format: str

    def card(self) -> ModelCard:
        return make_card(self.path.stem)

    @contextmanager
    def weights(self) -> Iterator[Path]:
        yield self.path


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    path, model_format, socket_path, max_num_seqs = sys.argv[1:5]
    sys.exit(
        run(
            EngineOptions(
                socket_path=Path(socket_path),
                model=FileModel(Path(path), model_format),
                runner=RunnerOptions(max_num_seqs=int(max_num_seqs), num_threads=2),
                loop=LoopOptions(drain_timeout_s=10),
            )
        )
    )
