"""The folder for `ollama create`: what its Modelfile says is what our own dialects and files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from exported import export, glm_folder, keys_of

from adapter_files import factors, settings, write_adapter
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import DIALECTS, dialect_for
from glm4.chat.messages import Message
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.errors import InvalidRequestError
from glm4.export.ollama import TEMPLATES
from glm4.requests.processor import Processor
from tiny import write_gguf

TURNS = (Message("system", "Be brief."), Message("user", "你好"), Message("assistant", "Hi."), Message("user", "北京?"))


def in_go(template: str, turns: tuple[Message, ...]) -> str:
    """The few forms of Go's template language that ours use."""
    match = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL)
    assert match is not None
    head, turn, tail = match.groups()
    made = [turn.replace("{{ .Role }}", one.role).replace("{{ .Content }}", one.text) for one in turns]
    whole = head + "".join(made) + tail
    assert "{{" not in whole
    return whole


def directives(file: str) -> list[tuple[str, str]]:
    """(instruction, argument) of a Modelfile."""
    found = re.findall(r'^([A-Z]+) (?:"""(.*?)"""|(.*?))$', file, re.DOTALL | re.MULTILINE)
    assert (
        "".join(f"{n} {quoted and chr(34) * 3 + quoted + chr(34) * 3}{plain}\n" for n, quoted, plain in found) == file
    )
    return [(name, quoted or plain) for name, quoted, plain in found]


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("start", [0, 1])
def test_the_plain_template_writes_our_prompt(name: str, start: int, tmp_path: Path) -> None:
    dialect = dialect_for(name)
    source = write_gguf(tmp_path / "m.gguf", "qwen2" if name == "chatml" else "chatglm")
    with open_checkpoint(source) as checkpoint:
        tokenizer = Processor.load(checkpoint).tokenizer
    text = dialect.render_text(ChatRequest(messages=TURNS[start:]), tokenizer=tokenizer, template=None)
    assert in_go(TEMPLATES[name], TURNS[start:]) == text
    assert "tool" not in TEMPLATES[name].lower()  # or Ollama would pass tools to it


def test_a_folder(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m", "chatglm", max_position_embeddings=131072, template=None)
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "top_p": 0.7, "do_sample": True}))
    (source / "LICENSE").write_text("The license.\nOf two lines.")
    with open_checkpoint(source) as checkpoint:
        adapter = write_adapter(tmp_path / "adapter", factors(checkpoint.config, 1), settings())
    out = tmp_path / "GLM4-out"
    report = export(source, out, "q8_0", to="ollama", lora=adapter)
    assert report.files == ("Modelfile", "adapter.gguf", "model.gguf")
    assert report.nbytes == sum(file.stat().st_size for file in out.iterdir())
    assert report.next_command == f"ollama create glm4-out -f {out}/Modelfile"
    assert directives((out / "Modelfile").read_text()) == [
        ("FROM", "./model.gguf"),
        ("ADAPTER", "./adapter.gguf"),
        ("TEMPLATE", TEMPLATES["glm4"]),
        ("PARAMETER", 'stop "<|endoftext|>"'),
        ("PARAMETER", 'stop "<|user|>"'),
        ("PARAMETER", 'stop "<|observation|>"'),
        ("PARAMETER", "num_ctx 32768"),
        ("PARAMETER", "temperature 0.8"),
        ("PARAMETER", "top_p 0.7"),
        ("LICENSE", "The license.\nOf two lines."),
    ]
    export(source, tmp_path / "alone.gguf", "q8_0", name="GLM4-out")
    alone = keys_of(tmp_path / "alone.gguf") | {"general.name": None}
    assert keys_of(out / "model.gguf") | {"general.name": None} == alone
    assert "message.role == 'tool'" in alone["tokenizer.chat_template"]
    assert keys_of(out / "adapter.gguf")["adapter.type"] == "lora"


def test_a_starter_has_its_license_and_sampling(tmp_path: Path) -> None:
    keys = {"general.basename": "Qwen2.5-Coder", "qwen2.block_count": 2}
    source = write_gguf(tmp_path / "m.gguf", "qwen2", metadata=keys)
    export(source, tmp_path / "out", "q8_0", to="ollama")
    plain = directives((tmp_path / "out/Modelfile").read_text())
    assert [name for name, _ in plain if name == "LICENSE"] == []  # an unknown model's license is unknown
    from glm4.variants import VARIANTS

    with open_checkpoint(source, variant=VARIANTS["starter"]) as checkpoint:
        from glm4.export.targets import ExportRequest, export_target

        export_target("ollama").export(ExportRequest(checkpoint, tmp_path / "known", "q8_0"))
    known = dict(directives((tmp_path / "known/Modelfile").read_text()))
    assert "Apache License" in known["LICENSE"]
    assert ("PARAMETER", "repeat_penalty 1.1") in directives((tmp_path / "known/Modelfile").read_text())
    assert ("PARAMETER", 'stop "<|im_end|>"') in plain


def test_a_greedy_model_and_what_may_be_replaced(tmp_path: Path) -> None:
    source, out = glm_folder(tmp_path / "m"), tmp_path / "out"
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.8, "do_sample": False}))
    export(source, out, "f32", to="ollama")
    assert [value for name, value in directives((out / "Modelfile").read_text()) if "temp" in value] == [
        "temperature 0"
    ]
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(source, out, "f32", to="ollama")
    export(source, out, "f32", to="ollama", force=True)
    (out / "blob").write_text("mine")
    with pytest.raises(InvalidRequestError, match="'blob', which this export does not write"):
        export(source, out, "f32", to="ollama", force=True)
    with pytest.raises(InvalidRequestError, match="has no use for --shard-size"):
        export(source, tmp_path / "other", "f32", to="ollama", shard_bytes=1)
