"""From prompt to text, the whole program: `glm4 generate` beside llama.cpp's programs on the same model file.

    python benchmarks/whole_program.py --llama BUILD/bin --prompt-tokens 512
    python benchmarks/whole_program.py --llama BUILD/bin --prompt-tokens 1000 --new 128

Start, loading, prefill and greedy decode of a long prompt (the beginning of LICENSE), as a user would run it; guessing
of repeated text is on for us, as it is by default. Tokens are counted in what was printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.requests.processor import Processor
from glm4.tokenizer import Tokenizer
from programs import Program, gguf_of, glm4, llama_programs, report, take_turns

TEXT = Path(__file__).parents[1] / "LICENSE"


def tokenizer_of(gguf: Path) -> Tokenizer:
    with open_checkpoint(gguf) as checkpoint:
        return Processor.load(checkpoint).tokenizer


def beginning(tokenizer: Tokenizer, tokens: int) -> str:
    """The first `tokens` tokens of the text.

    Raises:
        SystemExit: it is shorter.
    """
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    if len(ids) < tokens:
        raise SystemExit(f"{TEXT.name} has {len(ids)} tokens only")
    return tokenizer.decode(ids[:tokens])


def printed_tokens(tokenizer: Tokenizer, program: Program, prompt: str) -> int:
    """Tokens of what the last run printed, the prompt not counted where the program repeats it."""
    text = program.runs[-1].output
    return len(tokenizer.encode(text.split(prompt[-80:])[-1].rstrip("\n")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's binaries")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.rounds)
    gguf = gguf_of(arguments.model)
    tokenizer = tokenizer_of(gguf)
    prompt, new, threads = beginning(tokenizer, arguments.prompt_tokens), arguments.new, arguments.threads
    limits = ["--max-tokens", str(new), "--temperature", "0", "--threads", str(threads)]
    programs = [Program("glm4 generate", glm4("generate", prompt, "-m", arguments.model, *limits))]
    if arguments.llama:
        programs += llama_programs(arguments.llama, gguf, prompt, new, threads, chat=False)
    take_turns(programs, arguments.rounds)
    counts = {program.name: printed_tokens(tokenizer, program, prompt) for program in programs}
    facts |= {"prompt": f"{arguments.prompt_tokens} tokens", "printed tokens": counts}
    figures = {"prompt to exit, s": lambda run: run.seconds, "new tokens/s, all told": lambda run: new / run.seconds}
    print(report(programs, figures, facts, as_json=arguments.json))


if __name__ == "__main__":
    main()
