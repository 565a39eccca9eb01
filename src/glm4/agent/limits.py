"""`AgentLimits`: how far an agent may go in one turn."""

from __future__ import annotations

from dataclasses import dataclass

from glm4.errors import InvalidRequestError


@dataclass(frozen=True)
class AgentLimits:
    """Limits of one turn.

    Attributes:
        rounds: times the model may call tools; it then gets one more round, without tools, to answer. 10 as in GLM-4's
            own demo.
        seconds: for the whole turn, tools included; a call that still runs then is stopped. None for no limit.
        tokens: that the model may write in all rounds together; None for no limit.
        output_chars: of a call's result that the model reads; of longer ones it gets the beginning and the end. Less
            on a model whose context is small.
        calls_per_round: further calls of the same answer are not made.
        repeats: answers with a call that the model has just made, and that is not run again; it then answers without
            tools. Small models that repeat one have all they need, and make no other call after it.

    Raises:
        InvalidRequestError: a limit is not positive; `.param` names it.
    """

    rounds: int = 10
    seconds: float | None = 600
    tokens: int | None = None
    output_chars: int = 16_000
    calls_per_round: int = 16
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("rounds", "seconds", "tokens", "output_chars", "calls_per_round", "repeats"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidRequestError(f"the limit {name} must be positive, not {value}", param=name)
