"""What other tools train on, for the same token ids: the masks that ours must differ from, in exactly known tokens."""

from __future__ import annotations

from collections.abc import Sequence

USER, ASSISTANT, OBSERVATION = 151336, 151337, 151338
ROLES = (151335, USER, ASSISTANT, OBSERVATION)


def combined(ids: Sequence[int]) -> list[bool]:
    """The original's `combine: True`: what follows the token after the last `<|assistant|>`, since the mask is shifted
    twice; `<|user|>` stands at the end of every sample, whatever it ends with.

    Args:
        ids: with that `<|user|>`.
    """
    last = len(ids) - 1 - list(reversed(ids)).index(ASSISTANT)
    mask = [False] * (len(ids) - 1)
    mask[last + 1 :] = [True] * (len(mask) - last - 1)
    return [False, *mask]


def marked(ids: Sequence[int]) -> list[bool]:
    """TRL's `assistant_only_loss` with markers around what a template writes for the assistant: no role token."""
    mask, inside = [], False
    for token in ids:
        if token in ROLES:
            inside = token == ASSISTANT
            mask.append(False)
        else:
            mask.append(inside)
    return mask


def efficient_eos(ids: Sequence[int], end_of_text: int = 151329) -> list[tuple[int, bool]]:
    """LLaMA-Factory's template `glm4`: the assistant's turns, and `<|endoftext|>` in the place of what closes them."""
    labels, inside = [], False
    for token in ids:
        closes = inside and token in ROLES
        labels.append((end_of_text if closes else token, inside))
        inside = token == ASSISTANT or (inside and token not in ROLES)
    return labels
