"""`ImageInputs`: the pictures of a request, fetched and decoded before anything is queued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart, refusal
from glm4.chat.pictures import has_addresses, images_of
from glm4.errors import InvalidRequestError, shown
from glm4.prompt import ImageLayout, Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from glm4.multimodal.fetch import Fetcher
    from glm4.multimodal.image import ImageDecoder


ANY_HOST = "*"
"""In `ImageOptions.media_domains`: every public host."""


@dataclass(frozen=True)
class ImageOptions:
    """What requests to a model that sees may ask for. Models that read text only have no use for it.

    Attributes:
        allow_many_images: more than one picture per conversation, which goes beyond what GLM-4V was trained with.
        media_domains: hosts from which pictures are fetched if a request has their http(s) address; ".example.com" is
            example.com and all names below it, and "*" every host. None fetches nothing. Private addresses are never
            asked; see `multimodal.fetch`.

    Raises:
        InvalidRequestError: malformed; `.param` names it.
    """

    allow_many_images: bool = False
    media_domains: Sequence[str] | None = None

    def __post_init__(self) -> None:
        domains = self.media_domains
        if domains is None:
            return
        listed = isinstance(domains, Sequence) and not isinstance(domains, (str, bytes))
        if not listed or not all(isinstance(one, str) and one.strip() for one in domains):
            raise InvalidRequestError(
                f"media_domains is a list of host names, or ['*'] for every public one, not {shown(domains)}",
                param="media_domains",
            )
        try:
            _fetcher(domains)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"media_domains: {error}", param="media_domains") from None


@dataclass(frozen=True)
class ImageInputs:
    """Fetches and decodes pictures for one model. Thread-safe.

    Attributes:
        layout: how a picture stands in prompts.
        fetcher: None refuses addresses.
    """

    layout: ImageLayout
    decoder: ImageDecoder
    fetcher: Fetcher | None = None

    @classmethod
    def of(cls, layout: ImageLayout, options: ImageOptions) -> ImageInputs:
        """For a model with this layout."""
        from glm4.multimodal.image import ImageDecoder

        layout = replace(layout, most=None) if options.allow_many_images else layout
        return cls(layout, ImageDecoder(layout.size), _fetcher(options.media_domains))

    def fetched(self, request: ChatRequest) -> ChatRequest:
        """The request with the bytes of pictures that were addresses; the same one if there are none.

        Raises:
            InvalidRequestError: addresses are not allowed, or this one is not, or it leads to no picture.
        """
        if not has_addresses(request.messages):
            return request
        found = iter([self.fetch(part) for part in images_of(request.messages)])

        def replaced(message: Message) -> Message:
            return replace(message, content=[next(found) if isinstance(p, ImagePart) else p for p in message.content])

        return replace(request, messages=tuple(map(replaced, request.messages)))

    def fetch(self, part: ImagePart) -> ImagePart:
        """A picture with its bytes; see `fetched`."""
        if part.url is None:
            return part
        if self.fetcher is None:
            raise refusal(
                part.where,
                "pictures are not fetched from addresses here; send the picture itself as data:image/…;base64,…, or"
                " load the model with media_domains (`--media-domains`)",
            )
        got = self.fetcher.fetch(part.url, kinds=("image/",), where=part.where)
        return ImagePart(got.data, media_type=got.media_type, where=part.where, type=part.type)

    def with_pixels(self, prompt: Prompt, images: Sequence[ImagePart]) -> Prompt:
        """A prompt with the pixels of its pictures, all of which have their bytes.

        Raises:
            InvalidRequestError: one is damaged, too large or not a picture; `.param` is its location.
            BusyError: too many are being decoded.
        """
        if not images:
            return prompt
        pixels: dict[str, NDArray[np.uint8]] = {}
        for part in images:
            assert part.data is not None  # noqa: S101 (fetched before)
            pixels[str(part.digest)] = self.decoder.decode(part.data, part.where)
        return replace(prompt, pixels=MappingProxyType(pixels))

    def close(self) -> None:
        """End the process that decodes; a later request starts it again."""
        self.decoder.close()


def _fetcher(domains: Sequence[str] | None) -> Fetcher | None:
    if domains is None:
        return None
    from glm4.multimodal.fetch import Fetcher, FetchPolicy

    return Fetcher(FetchPolicy(allowed_hosts=None if ANY_HOST in domains else tuple(domains)))
