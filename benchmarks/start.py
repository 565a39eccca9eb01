"""Time from command to first token: `glm4 chat hi` beside llama.cpp's programs on the same model file.

    python benchmarks/start.py --llama BUILD/bin

Whole commands in turn, the page cache warm and our packed weights kept from an earlier start. "first byte" is when the
first character of standard output appears; llama-simple and llama-completion print the prompt before they have computed
it, so what counts for them is the exit, one token later. For us both are given. `glm4 generate` does what llama-simple
does, a bare prompt; `glm4 chat` and the others put it into a chat template, some 30 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
from programs import Program, gguf_of, glm4, llama_programs, report, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--prompt", default="hi")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's binaries")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.rounds)
    options = ["-m", arguments.model, "--max-tokens", "1", "--temperature", "0", "--threads", str(arguments.threads)]
    programs = [Program(f"glm4 {name}", glm4(name, arguments.prompt, *options)) for name in ("chat", "generate")]
    if arguments.llama:
        gguf = gguf_of(arguments.model)
        programs += llama_programs(arguments.llama, gguf, arguments.prompt, 1, arguments.threads, chat=True)
    take_turns(programs, arguments.rounds)
    figures = {"exit, s": lambda run: run.seconds, "first byte, s": lambda run: run.first_byte}
    print(report(programs, figures, facts, as_json=arguments.json))


if __name__ == "__main__":
    main()
