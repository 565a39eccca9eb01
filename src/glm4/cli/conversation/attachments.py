"""`Attachments`: the pictures that wait for the next message of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glm4.chat.messages import Message
from glm4.chat.pictures import images_of
from glm4.cli.console import notice
from glm4.cli.pictures import bracketed, read_picture, takes_text_only
from glm4.errors import InvalidRequestError

if TYPE_CHECKING:
    from glm4.chat.parts import ImagePart
    from glm4.llm import LLM


class Attachments:
    """Pictures for the next message.

    Args:
        llm: the loaded model.
        model: the name the user gave.
        waiting: pictures from the command line.
    """

    def __init__(self, llm: LLM, model: str, waiting: Sequence[ImagePart] = ()) -> None:
        self._layout = llm.processor.image
        self._model = model
        self.waiting = list(waiting)

    @property
    def model_sees(self) -> bool:
        """False for a model that reads text only."""
        return self._layout is not None

    @property
    def names(self) -> str:
        """What waits, as a conversation shows it; "" for nothing."""
        return " ".join(bracketed(self.waiting))

    def add(self, name: str, messages: Sequence[Message]) -> None:
        """Attach a picture, and say so; one that takes the place of the only possible one replaces it.

        Args:
            name: path or address.
            messages: the conversation so far.

        Raises:
            Glm4Error: the model does not see, the conversation has a picture already, or this cannot be read as one.
        """
        if self._layout is None:
            raise takes_text_only(self._model)
        picture = read_picture(name)
        earlier = images_of(messages)
        if picture.digest in {one.digest for one in (*earlier, *self.waiting)}:
            notice(f"{picture.where} is in the conversation already.")
            return
        kept = [] if self._layout.most == 1 else self.waiting
        if self._layout.most is not None and len(earlier) + len(kept) >= self._layout.most:
            raise InvalidRequestError(
                f"{picture.where}: the model was trained with one picture per conversation, and this one has"
                f" {' '.join(bracketed(earlier))}; /clear begins another, and `glm4 chat --allow-many-images` goes"
                " beyond that training"
            )
        instead = f", instead of {self.names}" if self.waiting and not kept else ""
        self.waiting = [*kept, picture]
        notice(f"[{picture.where}] is attached{instead}.")

    def show(self) -> None:
        """Say what waits."""
        nothing = (
            "No picture is attached. /image FILE attaches one." if self.model_sees else "This model reads text only."
        )
        notice(f"Attached to your next message: {self.names}; /image none removes it." if self.waiting else nothing)

    def remove(self) -> None:
        """Forget what waits, and say so."""
        notice(f"{self.names} is not attached any longer." if self.waiting else "No picture was attached.")
        self.waiting = []
