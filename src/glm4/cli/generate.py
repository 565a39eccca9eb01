"""`glm4 generate`: continue a text as is, without a chat template."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from glm4.cli import options
from glm4.cli.parameters import Argument, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.outputs import RequestOutput
    from glm4.sampling_params import SamplingParams

EXAMPLES = """
glm4 generate "The capital of France is" --max-tokens 8
glm4 generate -m glm-4-9b --n 3 --temperature 0.8 "Once upon a time"
glm4 generate --json --logprobs 5 --temperature 0 "1 + 1 =" --max-tokens 4
"""


def generate(
    prompt: Annotated[
        str | None, Argument(metavar="PROMPT", help="Text to continue; otherwise, or if it is -, piped input.")
    ] = None,
    *,
    model: options.Model = "starter",
    n: Annotated[int, Option("--n", "-n", min=1, metavar="N", help="Number of continuations.")] = 1,
    echo: Annotated[bool, Option("--echo", help="Print the prompt in front of each continuation.")] = False,
    json_output: Annotated[bool, Option("--json", help="Print one JSON object in OpenAI's shape.")] = False,
    logprobs: Annotated[
        int | None, Option(min=0, metavar="N", help="With --json: log-probabilities of this many likeliest tokens.")
    ] = None,
    engine: options.EngineOptions,
    lora: options.Lora = None,
    max_tokens: options.MaxTokens = 256,
    sampling: options.SamplingOptions,
) -> None:
    """Continue a text, without a chat template.

    For base models, and for prompts written out by hand. Use `glm4 chat` to ask questions.
    """
    if logprobs is not None and not json_output:
        raise UsageError("--logprobs needs --json")
    text = _prompt(prompt)
    params = sampling.given(n=n, logprobs=logprobs, max_tokens=max_tokens)
    with options.load_llm(model, lora=lora, **{"max_num_seqs": min(n, 16), **engine.for_llm()}) as llm:
        _run(llm, text, llm.default_sampling_params().replace(**params), model, echo=echo, json_output=json_output)


def _prompt(prompt: str | None) -> str:
    from glm4.cli.console import STREAM, clean_text, piped_stdin, read_stdin

    if prompt == STREAM:
        text: str | None = read_stdin()
    else:
        text = clean_text(prompt) if prompt is not None else piped_stdin()
    if not text:
        raise UsageError("there is nothing to continue; give a PROMPT or pipe one in")
    return text


def _run(llm: LLM, prompt: str, params: SamplingParams, model: str, *, echo: bool, json_output: bool) -> None:
    from glm4.chat.events import TextDelta
    from glm4.cli.console import EXIT_INTERRUPTED, notice, progress
    from glm4.cli.conversation.answer import run_request
    from glm4.cli.conversation.render import PlainView

    prepared = llm.prepare_prompt(prompt, params, adapter=options.adapter_name(llm))
    if params.n == 1 and not json_output:
        with PlainView() as view:
            view.show([TextDelta(prompt)] if echo else [])
            output = run_request(llm, prepared, view.show)
    else:
        most = params.n * (params.max_tokens or 0)
        with progress() as report:  # nothing is printed before the end
            output = run_request(llm, prepared, count=lambda tokens: report("generating", tokens, most))
        if output is not None:
            _print_whole(output, prompt if echo else "", model, llm, json_output=json_output)
    if output is None:
        notice("stopped")
        raise Exit(EXIT_INTERRUPTED)


def _print_whole(output: RequestOutput, prefix: str, model: str, llm: LLM, *, json_output: bool) -> None:
    """Print all continuations at once: JSON, or numbered texts."""
    from glm4.api.openai.answers import text_completions
    from glm4.cli.console import print_json, printable

    if json_output:
        print_json(text_completions([output], model, llm.tokenizer, echo=bool(prefix)))
        return
    for sample in output.outputs:
        text = f"[{sample.index + 1}] {prefix}{sample.text}\n"
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
