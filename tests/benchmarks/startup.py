"""How long a start takes, as a ratio to an empty Python, in one run: `python tests/benchmarks/startup.py [ROUNDS]`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import agent_token_injector": [sys.executable, "-c", "import agent_token_injector"],
    "from agent_token_injector import spawn_handoff": [
        *(sys.executable, "-c", "from agent_token_injector import spawn_handoff"),
    ],
    "handoff --help": [sys.executable, "-c", "from agent_token_injector.cli import main; main()", "--help"],
    "handoff check --schema": [
        *(sys.executable, "-c", "from agent_token_injector.cli import main; main()", "check", "--schema"),
    ],
}


def seconds(argv: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the median of every case, the cases taken in turn so that a noisy moment hits all of them."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, argv in CASES.items():
            taken[name].append(seconds(argv))
    base = statistics.median(taken["python -c pass"])
    for name, found in taken.items():
        median = statistics.median(found)
        print(f"{name:<48} {median * 1000:7.1f} ms   {median / base:5.1f} x")


if __name__ == "__main__":
    main()
