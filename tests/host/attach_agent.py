"""An agent for tests: runs the JSON list of words on each line of its input, and tells each one's exit status.

A line ``["&", ...]`` is started and not waited for; ``["wait"]`` waits for those. ``{"feed": TEXT}`` is written into
one long-lived bash. It ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> None:
    shell: subprocess.Popen[str] | None = None
    background: list[subprocess.Popen[bytes]] = []
    print("ready", flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        if isinstance(words, dict):
            if shell is None:
                shell = subprocess.Popen(["bash", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert shell.stdin is not None
            assert shell.stdout is not None
            shell.stdin.write(f"{words['feed']}\necho fed $?\n")
            shell.stdin.flush()
            print(shell.stdout.readline().strip(), flush=True)
        elif words == ["wait"]:
            print(json.dumps([process.wait() for process in background]), flush=True)
        elif words[0] == "&":
            background.append(subprocess.Popen(words[1:]))
            print(background[-1].pid, flush=True)
        else:
            print(subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode, flush=True)
    if shell is not None:
        shell.communicate()


if __name__ == "__main__":
    main()
