"""Compiles the native runner's C into the package when it is built or installed: hatchling calls this.

The compiler comes as a package (ziglang, a build requirement), so no machine needs one of its own, and the library asks
for no newer C library than the wheel's tag says. Elsewhere than on Linux on x86-64 nothing is compiled, and OpenVINO
serves.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("src/chatsvc/engine/runners/native")
_LIBRARY = _FOLDER / "_native.so"
_TARGET = ["-target", "x86_64-linux-gnu.2.28"]
_TAG = "py3-none-manylinux_2_28_x86_64"
_FEATURES = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"]
_CAREFUL = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
_OPTIONS = [*_CAREFUL, "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-s"]


class NativeHook(BuildHookInterface):
    """Puts ``_native.so`` beside the module that loads it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; an editable install finds the library in the source tree, a wheel takes it along."""
        del version
        if sys.platform != "linux" or platform.machine() != "x86_64":
            self.app.display_warning("the native runner is for Linux on x86-64: not compiled here")
            return
        root = Path(self.root)
        sources = sorted((root / _FOLDER / "csrc").rglob("*.c"))
        features = [f"-m{name}" for name in _FEATURES]
        compiler = [sys.executable, "-m", "ziglang", "cc", *_TARGET, *_OPTIONS, *features]
        subprocess.run([*compiler, *sources, "-lm", "-o", root / _LIBRARY], check=True)
        build_data["pure_python"] = False
        build_data["tag"] = _TAG
        build_data["artifacts"].append(str(_LIBRARY))
