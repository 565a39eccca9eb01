"""Records what transformers and PEFT compute, for the parity tests: `python tools/make_golden.py [--only KIND]`.

Needs the golden extra (torch, transformers, peft, gguf); the tests that read the files do not. Running it again on the
same machine gives the same bytes: a change in `git diff tests/golden` is a change in the numbers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "tests", "src")]

import golden_models as gm  # noqa: E402
from golden import adapters, prefixes, rope, starter, tiny, vision  # noqa: E402
from golden.files import write_json  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only",
        choices=["tiny", "adapters", "prefixes", "vision", "starter", "smoke"],
        help="record one kind of file (default: all)",
    )
    parser.add_argument(
        "--starter", type=Path, metavar="GGUF", help="the starter's file (default: what `glm4 pull` stores)"
    )
    parser.add_argument("--smoke", type=Path, metavar="GGUF", help="the smoke model's file (default: likewise)")
    parser.add_argument("--out", type=Path, default=gm.GOLDEN, help="folder to write to (default: tests/golden)")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(1)  # sums are cut by thread, so their number shows in the last bits
    torch.use_deterministic_algorithms(True)
    jobs: dict[str, Callable[[], list[Path]]] = {
        "tiny": lambda: [*tiny.record(args.out / "tiny"), *rope.record(args.out)],
        "adapters": lambda: adapters.record(args.out / "adapters"),
        "prefixes": lambda: prefixes.record(args.out / "prefixes"),
        "vision": lambda: vision.record(args.out / "vision"),
        "starter": lambda: starter.record("starter", args.starter or installed("starter"), args.out),
        "smoke": lambda: starter.record("smoke", args.smoke or installed("smoke"), args.out),
    }
    written: list[Path] = []
    for name, job in jobs.items():
        if args.only in (None, name):
            print(f"{name} …", flush=True)
            start = time.monotonic()
            written += job()
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    packages = ("torch", "transformers", "peft", "numpy", "gguf", "pillow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    write_json(args.out / "versions.json", versions)
    print_table([*written, args.out / "versions.json"], args.out)
    return 0


def installed(name: str) -> Path:
    """The GGUF file of a model that `glm4 pull` has stored (fetched now if it is not there)."""
    from glm4 import hub

    return Path(hub.resolve(name))


def print_table(paths: list[Path], folder: Path) -> None:
    print(f"\n{'file':40} {'bytes':>10}")
    for path in paths:
        print(f"{path.relative_to(folder)!s:40} {path.stat().st_size:>10,}")
    print(f"{'total':40} {sum(path.stat().st_size for path in paths):>10,}")


if __name__ == "__main__":
    raise SystemExit(main())
