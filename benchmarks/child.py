"""Run one command and print what became of it as JSON; `harness.finish` runs this.

A process of its own because a child's peak memory begins with that of the process that started it: Linux carries it
over when the child becomes another program. This one is small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time


def run(words: list[str]) -> dict[str, object]:
    """Start, wait, and account for a command with nothing on its standard input."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        assert child.stdout is not None
        output = child.stdout.read(1)
        first_byte = time.perf_counter() - start
        while part := child.stdout.read(1 << 16):
            output += part
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        errors.seek(0)
        return {
            "status": child.returncode,
            "output": output.decode(errors="replace"),
            "errors": errors.read().decode(errors="replace")[-2000:],
            "seconds": seconds,
            "first_byte": first_byte,
            # Kilobytes on Linux, bytes on macOS.
            "peak_nbytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:])))
