"""Sealed weights in the real runner: unsealed into memory, loaded from there, and as good as the plain ones."""

from __future__ import annotations

import shutil
from pathlib import Path

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.openvino.runner import OpenVinoRunner
from chatsvc.models.seal import sealing
from chatsvc.models.seal.sealed import read_kek
from chatsvc.models.store import ModelFolder, ModelStore
from tests.engine.conftest import run


def test_a_sealed_model_warms_up_and_answers_like_the_plain_one(
    smollm2: ModelFolder, openvino: OpenVinoRunner, tmp_path: Path
) -> None:
    home = smollm2.path.parent.parent
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    kek_file = tmp_path / "kek"
    kek_file.write_bytes(bytes(range(32)))
    kek_file.chmod(0o400)
    store = ModelStore(tmp_path / "home" / "models", tmp_path / "home" / "keys", kek_file)
    sealing.seal(store, smollm2.name, read_kek(kek_file))
    folder = store.get(smollm2.name)
    with folder.weights() as path:
        sealed = OpenVinoRunner(path, folder.card(), RunnerOptions(max_num_seqs=2, num_threads=2))
        sealed.warm_up()
    work = [(range(100, 140), Sampling(max_tokens=6, temperature=0))]
    assert run(sealed, work) == run(openvino, work)
