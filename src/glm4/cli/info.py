"""`glm4 info`: what a checkpoint is, read from its headers; no weights are loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli.parameters import Argument, AsJson, Option

if TYPE_CHECKING:
    from rich.table import Table

    from glm4.checkpoints.checkpoint import Checkpoint

EXAMPLES = """
glm4 info starter
glm4 info ./my-finetune --tensors
glm4 info glm-4-9b-chat --json
"""

_TEMPLATE_LINES = 4


def info(
    model: Annotated[str, Argument(metavar="MODEL", help="An installed model, a folder, or a GGUF file.")],
    tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    verify: Annotated[
        bool, Option("--verify", help="Compare a packed checkpoint's weights with their sha256.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Describe a model: architecture, parameters, dtype, context, template, tensors.

    The model must be on this machine; nothing is downloaded.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.cli import console
    from glm4.variants import get_variant

    path = hub.resolve(model, allow_download=False)
    with open_checkpoint(path, variant=get_variant(model)) as checkpoint:
        checkpoint.check()
        if verify:
            _verify(checkpoint)
        facts = describe(checkpoint, hub.starter_of(model) is not None)
        listing = [_tensor(checkpoint, name) for name in sorted(checkpoint.source.names())] if tensors else None
        facts |= {"verified": True} if verify else {}
    if as_json:
        console.print_json(facts | ({"tensor_list": listing} if listing is not None else {}))
        return
    console.stdout().print(_summary(facts))
    if listing is not None:
        console.stdout().print(_listing(listing))


def _verify(checkpoint: Checkpoint) -> None:
    from glm4.cli import console
    from glm4.errors import InvalidRequestError

    if checkpoint.packed is None:
        raise InvalidRequestError(
            "--verify is for packed checkpoints (`glm4 quantize`); other files carry no digest of their weights",
            param="verify",
        )
    with console.progress() as report:
        checkpoint.packed.verify_sha256(report)
    console.notice("the weights' sha256 is the one in config.json")


def describe(checkpoint: Checkpoint, is_starter: bool = False) -> dict[str, Any]:
    """Everything `glm4 info` shows, as plain values.

    Args:
        checkpoint: opened; only its headers, tokenizer and template are read.
        is_starter: its license text and attribution are next to the file.
    """
    from glm4.model.tensors import num_parameters

    config, variant = checkpoint.config, checkpoint.variant
    dtypes = Counter(checkpoint.source.info(name).dtype for name in checkpoint.source.names())
    template = checkpoint.chat_template
    return {
        "name": variant.name,
        "title": variant.title,
        "path": str(checkpoint.path),
        "format": checkpoint.kind,
        "files": _files(checkpoint),
        "license": variant.license,
        "attribution": str(checkpoint.path.parent / "NOTICE") if is_starter else None,
        "architecture": config.architecture,
        "parameters": num_parameters(config),
        "dtypes": dict(dtypes.most_common()),
        "tensors": len(checkpoint.source.names()),
        "stored": _stored(checkpoint),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tied_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "context": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rotary_dim": config.rotary_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "vision": None if config.vision is None else {**asdict(config.vision), "tokens": config.vision.num_rows},
        "dialect": variant.dialect,
        "template": template,
        "stop_tokens": _stop_tokens(checkpoint),
        "sampling_defaults": {**variant.sampling, **checkpoint.generation_config},
        "notes": [*([variant.notes] if variant.notes else []), *checkpoint.notes],
    }


def _stored(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The effect of dtype "stored" on the matrices of a GGUF file with 4-bit tensors: their formats and bytes."""
    from glm4.model.precision import STORED, weight_nbytes
    from glm4.model.tensors import all_matrices

    precision = checkpoint.stored_precision
    if precision is None or precision.name != STORED:
        return None
    formats = Counter(precision.format_of(name) for name in all_matrices(checkpoint.config))
    return {"matrices": dict(formats.most_common()), "bytes": weight_nbytes(checkpoint.config, precision)}


def _files(checkpoint: Checkpoint) -> dict[str, int]:
    path = checkpoint.path
    if path.is_file():
        return {path.name: path.stat().st_size}
    suffixes = (".safetensors", ".gguf", ".json", ".jinja", ".model")
    return {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.suffix in suffixes}


def _stop_tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """Stop ids by name, the dialect's and the checkpoint's; without a usable tokenizer, only the latter, by number."""
    from glm4.chat.dialects.table import dialect_for
    from glm4.errors import Glm4Error
    from glm4.tokenizer import load_tokenizer

    ids = checkpoint.config.eos_token_ids
    folder: Path | None = None
    if checkpoint.kind != "gguf":
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    try:
        tokenizer = load_tokenizer(folder, gguf_metadata=checkpoint.gguf_metadata or None)
        stops = dialect_for(checkpoint.variant.dialect).stop_ids(tokenizer) | set(ids)
        return {tokenizer.token_bytes(token).decode("utf-8", "replace"): token for token in sorted(stops)}
    except Glm4Error:
        return {f"id {token}": token for token in ids}


def _tensor(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    found = checkpoint.source.info(name)
    return {"name": name, "shape": list(found.shape), "dtype": found.dtype, "bytes": found.nbytes}


def _summary(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    from glm4.cli.console import human_bytes, printable

    files = list(facts["files"].items())
    shown = ", ".join(f"{name} ({human_bytes(size)})" for name, size in files[:6])
    if len(files) > 6:
        shown += f" and {len(files) - 6} more, {human_bytes(sum(size for _, size in files))} in all"
    rows = [
        ("model", facts["title"]),
        ("path", facts["path"]),
        ("files", shown),
        ("license", facts["license"] + (f"; see {facts['attribution']}" if facts["attribution"] else "")),
        ("architecture", f"{facts['architecture']}, {facts['layers']} layers, {_millions(facts['parameters'])}"),
        ("dtypes", ", ".join(f"{count} x {dtype}" for dtype, count in facts["dtypes"].items())),
        *((("dtype stored", _kept(facts["stored"])),) if facts["stored"] else ()),
        ("hidden / MLP", f"{facts['hidden_size']} / {facts['intermediate_size']}"),
        (
            "attention",
            f"{facts['attention_heads']} heads of {facts['head_dim']}, {facts['key_value_heads']} key/value heads"
            + (", biased" if facts["attention_bias"] else ""),
        ),
        ("vocabulary", f"{facts['vocab_size']:,}" + (", head tied to embedding" if facts["tied_embeddings"] else "")),
        ("context", f"{facts['context']:,} tokens"),
        ("RoPE", f"theta {facts['rope_theta']:,.0f}, {facts['rotary_dim']} of {facts['head_dim']} channels"),
        *((("vision", _vision(facts["vision"])),) if facts["vision"] else ()),
        ("stop tokens", ", ".join(f"{name} ({token})" for name, token in facts["stop_tokens"].items()) or "none"),
        ("sampling", ", ".join(f"{k} {v}" for k, v in facts["sampling_defaults"].items()) or "our defaults"),
        ("dialect", facts["dialect"]),
        ("template", _first_lines(facts["template"])),
        *(("note", note) for note in facts["notes"]),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, printable(value))
    return table


def _vision(vision: dict[str, Any]) -> str:
    side = vision["image_size"]
    return (
        f"{vision['num_hidden_layers']} layers of {vision['hidden_size']}; "
        f"a picture becomes {side} x {side} pixels and {vision['tokens']:,} tokens"
    )


def _kept(stored: dict[str, Any]) -> str:
    from glm4.cli.console import human_bytes

    matrices = ", ".join(f"{count} x {format}" for format, count in stored["matrices"].items())
    return f"{matrices}; {human_bytes(stored['bytes'])} of weights"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B parameters" if count >= 1e9 else f"{count / 1e6:.1f}M parameters"


def _first_lines(template: str | None) -> str:
    if template is None:
        return "none in the checkpoint; the dialect's own is used"
    lines = template.splitlines()
    more = len(lines) - _TEMPLATE_LINES
    lines = [line if len(line) <= 100 else line[:99] + "…" for line in lines[:_TEMPLATE_LINES]]
    return "\n".join(lines) + (f"\n… {more} more lines" if more > 0 else "")


def _listing(tensors: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from glm4.cli.console import human_bytes, printable

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        table.add_row(printable(tensor["name"]), shape, printable(tensor["dtype"]), human_bytes(tensor["bytes"]))
    return table
