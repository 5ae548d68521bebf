"""The native runner's C under AddressSanitizer and UndefinedBehaviorSanitizer: loading and passes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatsvc.engine.runners.native import library
from tests.engine.tinyweights import tiny_safetensors
from tests.models.ggufs import tiny_gguf

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(library.__file__).with_name("csrc")
FEATURES = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"]
SANITISERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
COMPILER = shutil.which("gcc")  # ziglang's compiler brings no AddressSanitizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}"),
    pytest.mark.skipif(COMPILER is None, reason="there is no gcc, whose AddressSanitizer this needs"),
]


@pytest.fixture(scope="module")
def runtime() -> Path:
    """AddressSanitizer's library, which must be loaded before Python."""
    told = subprocess.run([str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = Path(told.stdout.strip())
    if not path.is_absolute():
        pytest.skip("gcc is installed without libasan")
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    path = tmp_path_factory.mktemp("sanitised") / "native.so"
    options = ["-std=gnu11", "-O0", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", *SANITISERS]
    options += [f"-m{name}" for name in FEATURES]
    subprocess.run([str(COMPILER), *options, *sorted(SOURCES.rglob("*.c")), "-lm", "-o", path], check=True)
    return path


def run(program: list[str], runtime: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(runtime), "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    return subprocess.run(
        [sys.executable, *program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_loading_and_passes_are_clean(compiled: Path, runtime: Path, tmp_path: Path) -> None:
    files = [tiny_gguf(tmp_path / "tiny.gguf", heads=1), tiny_safetensors(tmp_path / "tiny")]
    ended = run(["-m", "tests.engine.sanitized", str(compiled), *map(str, files)], runtime)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout == "done\n"


def test_an_error_would_be_found(compiled: Path, runtime: Path) -> None:
    """Two numbers, of which the library is told that there are a hundred."""
    program = (
        "import ctypes; from pathlib import Path; from chatsvc.engine.runners.native import library\n"
        f"library._PATH = Path({str(compiled)!r}); one = library._library()\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; numbers = libc.malloc(8)\n"
        "one.model_largest(numbers, 100, 1, (ctypes.c_int32 * 1)())"
    )
    ended = run(["-c", program], runtime)
    assert ended.returncode != 0
    assert "heap-buffer-overflow" in ended.stderr
