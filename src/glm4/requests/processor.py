"""`Processor`: a checkpoint's tokenizer, chat dialect, template and defaults, loaded together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import Dialect, dialect_for
from glm4.chat.template.template import ChatTemplate
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.errors import InvalidRequestError
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer, load_tokenizer

# Keys of generation_config.json that are sampling options here under the same name.
_GENERATION_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Processor:
    """Everything that turns messages into ids and ids into messages.

    Attributes:
        template: the checkpoint's own chat template; None falls back to the dialect's.
        eos_ids: stop ids the checkpoint's configuration names, beside the dialect's own.
        defaults: sampling options used when the caller gives none.
    """

    tokenizer: Tokenizer
    dialect: Dialect
    template: ChatTemplate | None = None
    eos_ids: frozenset[int] = frozenset()
    defaults: SamplingParams = field(default_factory=SamplingParams)

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Processor:
        """Read the text side of a checkpoint.

        Raises:
            TokenizerError, TemplateError: a part is missing or malformed.
        """
        path = None if checkpoint.kind == "gguf" else checkpoint.path
        packed = checkpoint.packed is not None
        tokenizer = load_tokenizer(path, gguf_metadata=checkpoint.gguf_metadata or None, packed=packed)
        source = checkpoint.chat_template
        return cls(
            tokenizer=tokenizer,
            dialect=dialect_for(checkpoint.variant.dialect),
            template=None if source is None else ChatTemplate(source),
            eos_ids=frozenset(checkpoint.config.eos_token_ids),
            defaults=_default_params(checkpoint),
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn."""
        return self.eos_ids | self.dialect.stop_ids(self.tokenizer)

    def render(self, request: ChatRequest) -> Prompt:
        """The prompt of a conversation; see `TemplateDialect.render` for the errors."""
        return self.dialect.render(request, tokenizer=self.tokenizer, template=self.template)


def _default_params(checkpoint: Checkpoint) -> SamplingParams:
    """What our table of variants says, replaced by what the checkpoint's generation_config.json says."""
    table: dict[str, Any] = dict(checkpoint.variant.sampling)
    generation = checkpoint.generation_config
    own = {key: generation[key] for key in _GENERATION_KEYS if generation.get(key) is not None}
    # transformers: do_sample false means greedy, whatever temperature says.
    if generation.get("do_sample") is False:
        own = {key: value for key, value in own.items() if key == "repetition_penalty"} | {"temperature": 0.0}
    try:
        return SamplingParams(**(table | own))
    except InvalidRequestError:
        # A damaged generation_config.json must not make the model unusable.
        return SamplingParams(**table)
