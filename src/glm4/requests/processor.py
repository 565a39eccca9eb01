"""`Processor`: a model's tokenizer, chat dialect, template and defaults, loaded together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import Dialect, dialect_for
from glm4.chat.template.template import ChatTemplate
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.text_files import TextFiles, read_text_files
from glm4.errors import InvalidRequestError, TokenizerError
from glm4.prompt import ImageLayout, Prompt
from glm4.requests.image_inputs import ImageInputs, ImageOptions
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.variants import Variant

_NO_OPTIONS = ImageOptions()

# Keys of generation_config.json that are also names of sampling options here.
_GENERATION_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Processor:
    """Everything that turns messages into ids and ids into messages.

    Attributes:
        template: the checkpoint's own chat template; None falls back to the dialect's.
        eos_ids: stop ids from the checkpoint's configuration, in addition to the dialect's own.
        defaults: sampling options used when the caller gives none.
        images: takes pictures in; None if the model reads text only.
    """

    tokenizer: Tokenizer
    dialect: Dialect
    template: ChatTemplate | None = None
    eos_ids: frozenset[int] = frozenset()
    defaults: SamplingParams = field(default_factory=SamplingParams)
    images: ImageInputs | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, images: ImageOptions = _NO_OPTIONS) -> Processor:
        """The processor of an open checkpoint; see `of`."""
        return cls.of(checkpoint.text_files, images)

    @classmethod
    def open(cls, path: Path, *, variant: Variant | None = None) -> Processor:
        """The processor of a folder or GGUF file, without opening its weights (if any); see `read_text_files`."""
        return cls.of(read_text_files(path, variant=variant))

    @classmethod
    def of(cls, files: TextFiles, images: ImageOptions = _NO_OPTIONS) -> Processor:
        """Build the processor from files already read.

        Args:
            images: used if the model sees.

        Raises:
            TokenizerError, TemplateError: a part is missing or malformed.
        """
        source = files.chat_template
        tokenizer = load_tokenizer(files.path, gguf_metadata=files.gguf_metadata or None, packed=files.packed)
        dialect = dialect_for(files.variant.dialect)
        return cls(
            tokenizer=tokenizer,
            dialect=dialect,
            template=None if source is None else ChatTemplate(source),
            eos_ids=frozenset(files.eos_token_ids),
            defaults=_default_params(files),
            images=None if files.image is None else ImageInputs.of(_checked(files.image, dialect, tokenizer), images),
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """All ids that end a turn."""
        return self.eos_ids | self.dialect.stop_ids(self.tokenizer)

    @property
    def image(self) -> ImageLayout | None:
        """How a picture stands in prompts; None if the model reads text only."""
        return None if self.images is None else self.images.layout

    @property
    def chat_template(self) -> ChatTemplate:
        """The template that is used."""
        return self.dialect.choose_template(self.template, self.image)

    def render(self, request: ChatRequest, *, most: int | None = None) -> Prompt:
        """The prompt of a conversation, without pixels; see `TemplateDialect.render` for `most` and the errors."""
        return self.dialect.render(
            request, tokenizer=self.tokenizer, template=self.template, image=self.image, most=most
        )

    def text_of(self, prompt: Prompt) -> str:
        """A prompt for human readers, special tokens included; a picture is its marks."""
        return self.tokenizer.decode(prompt.short_ids, skip_special_tokens=False)

    def render_text(self, request: ChatRequest) -> str:
        """The same as text; see `TemplateDialect.render_text`."""
        return self.dialect.render_text(request, tokenizer=self.tokenizer, template=self.template, image=self.image)


def _checked(image: ImageLayout, dialect: Dialect, tokenizer: Tokenizer) -> ImageLayout:
    """The layout, if the dialect writes pictures with the tokens that the configuration names."""
    if "image" not in dialect.media:
        raise TokenizerError(f"the configuration has a vision part, but the dialect {dialect.name!r} has no pictures")
    begin, _, end = dialect.mark_ids(tokenizer)
    if (begin, end) != (image.begin_id, image.end_id):
        raise TokenizerError(
            f"the configuration says that pictures begin with token {image.begin_id} and end with {image.end_id}; in"
            f" this vocabulary {dialect.picture_marks[0]} is {begin} and {dialect.picture_marks[2]} is {end}"
        )
    return image


def _default_params(files: TextFiles) -> SamplingParams:
    """Defaults from our table of variants, overridden by the checkpoint's generation_config.json."""
    table: dict[str, Any] = dict(files.variant.sampling)
    generation = files.generation_config
    own = {key: generation[key] for key in _GENERATION_KEYS if generation.get(key) is not None}
    # As in transformers, do_sample=false means greedy, regardless of temperature.
    if generation.get("do_sample") is False:
        own = {key: value for key, value in own.items() if key == "repetition_penalty"} | {"temperature": 0.0}
    try:
        return SamplingParams(**(table | own))
    except InvalidRequestError:
        # A damaged generation_config.json must not make the model unusable.
        return SamplingParams(**table)
