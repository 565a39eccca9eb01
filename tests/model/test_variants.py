"""variants.py: the table, and how metadata finds a row."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import tiny
from glm4.errors import UnsupportedModelError
from glm4.sampling_params import SamplingParams
from glm4.variants import ALIASES, VARIANTS, Variant, choose_dialect, find_variant, get_variant

CHAT = {
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rope_theta": 5e6,
}
LAYERS_32B = {"hidden_size": 6144, "num_hidden_layers": 61, "num_key_value_heads": 2}
QWEN = {"num_key_value_heads": 2, "basename": "Qwen2.5-Coder"}


@pytest.mark.parametrize(
    ("model_type", "facts", "template", "name"),
    [
        ("chatglm", CHAT, tiny.GLM_TEMPLATE, "glm-4-9b-chat"),
        ("glm", CHAT, tiny.GLM_TEMPLATE, "glm-4-9b-chat-hf"),
        ("chatglm", {**CHAT, "num_key_value_heads": 4, "max_position_embeddings": 1 << 20}, None, "glm-4-9b-chat-1m"),
        ("glm", {**CHAT, "num_key_value_heads": 4, "max_position_embeddings": 1 << 20}, None, "glm-4-9b-chat-1m-hf"),
        ("chatglm", {**CHAT, "max_position_embeddings": 8192}, None, "glm-4-9b"),
        ("glm", {**CHAT, "max_position_embeddings": 8192}, None, "glm-4-9b-hf"),
        ("chatglm", {**CHAT, "max_position_embeddings": 8192, "vision_layers": 63}, None, "glm-4v-9b"),
        ("chatglm", {**CHAT, "vision_layers": 63}, None, "glm-4v-9b"),
        ("chatglm", {**CHAT, "vision_layers": 2}, None, "generic-chatglm"),
        ("glm4", {**CHAT, "vision_layers": 63}, tiny.GLM_TEMPLATE, "generic-glm4"),
        ("glm4", CHAT, tiny.GLM_TEMPLATE, "glm-4-9b-0414"),
        ("glm4", CHAT, tiny.Z1_TEMPLATE, "glm-z1-9b-0414"),
        ("glm4", LAYERS_32B, tiny.GLM_TEMPLATE, "glm-4-32b-0414"),
        ("glm4", LAYERS_32B, tiny.Z1_TEMPLATE, "glm-z1-32b-0414"),
        ("glm", {"hidden_size": 2048, "num_hidden_layers": 28, "num_key_value_heads": 4}, None, "glm-edge-1.5b-chat"),
        ("chatglm", {"hidden_size": 3072, "num_hidden_layers": 40, "num_key_value_heads": 6}, None, "glm-edge-4b-chat"),
        ("qwen2", {**QWEN, "hidden_size": 896, "num_hidden_layers": 24}, tiny.CHATML_TEMPLATE, "starter"),
        ("qwen2", {**QWEN, "hidden_size": 1536, "num_hidden_layers": 28}, tiny.CHATML_TEMPLATE, "starter-large"),
        (
            "llama",
            {"hidden_size": 576, "num_hidden_layers": 30, "num_key_value_heads": 3},
            tiny.CHATML_TEMPLATE,
            "smoke",
        ),
    ],
)
def test_metadata_finds_the_row(model_type: str, facts: dict[str, Any], template: str | None, name: str) -> None:
    assert find_variant(model_type, facts, template).name == name


def test_every_row_but_the_two_twins_can_be_found() -> None:
    """A row nobody can match would be dead; LongWriter and LongCite are chosen by name only."""
    unmatched = set()
    templates = {"glm4": None, "glm4_0414": None, "glm_z1": tiny.Z1_TEMPLATE, "chatml": tiny.CHATML_TEMPLATE}
    for row in VARIANTS.values():
        facts = {key: value for key, value in row.signature.items() if key != "published_name"}
        if find_variant(row.model_types[0], facts, templates[row.dialect]) is not row:
            unmatched.add(row.name)
    assert unmatched == {"longwriter-glm4-9b", "longcite-glm4-9b"}


@pytest.mark.parametrize(
    ("model_type", "template", "dialect"),
    [
        ("chatglm", tiny.GLM_TEMPLATE, "glm4"),
        ("chatglm", None, "glm4"),
        ("glm", "<|user|>\n{{ x }}", "glm4"),
        ("glm", tiny.CHATML_TEMPLATE, "chatml"),
        ("glm4", None, "glm4_0414"),
        ("glm4", tiny.Z1_TEMPLATE, "glm_z1"),
        ("qwen2", None, "chatml"),
        ("llama", tiny.CHATML_TEMPLATE, "chatml"),
    ],
)
def test_unknown_checkpoints_get_a_generic_row(model_type: str, template: str | None, dialect: str) -> None:
    row = find_variant(model_type, {"hidden_size": 64}, template)
    assert row.name == f"generic-{model_type}"
    assert row.dialect == dialect == choose_dialect(model_type, template)
    assert row.name not in VARIANTS


def test_what_has_no_dialect_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="unknown model type 'gemma'"):
        find_variant("gemma", {}, None)
    with pytest.raises(UnsupportedModelError, match="not ChatML"):
        find_variant("llama", {}, "[INST] {{ x }} [/INST]")


def test_names_aliases_and_repositories() -> None:
    chat = VARIANTS["glm-4-9b-chat"]
    spellings = ("GLM-4-9B-Chat", " glm-4 ", "THUDM/glm-4-9b-chat", "zai-org/glm-4-9b-chat", "ZhipuAI/glm-4-9b-chat")
    assert all(get_variant(spelling) is chat for spelling in spellings)
    assert get_variant("THUDM/GLM-Z1-9B-0414") is VARIANTS["glm-z1-9b-0414"]
    assert get_variant("nobody/nothing") is None
    assert get_variant("") is None
    assert not ALIASES.keys() & VARIANTS.keys()
    assert set(ALIASES.values()) <= VARIANTS.keys()
    ids = [row.repo_id for row in VARIANTS.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("row", VARIANTS.values(), ids=VARIANTS)
def test_every_row_is_complete(row: Variant) -> None:
    assert row.name == row.name.lower()
    assert row.title
    assert row.repo_id.count("/") == 1
    assert row.license in ("glm-4", "MIT", "Apache-2.0")
    assert row.parameters > 1e8
    assert row.context >= 8192
    assert row.size_bytes > 5e7
    assert row.signature
    options: dict[str, Any] = dict(row.sampling)
    SamplingParams(**options)


def test_every_field_is_used_by_some_row() -> None:
    generic = find_variant("glm", {}, None)
    for field in fields(Variant):
        assert any(getattr(row, field.name) != getattr(generic, field.name) for row in VARIANTS.values()), field.name
