"""What masking costs, by size of the result and number of secrets: `python tests/benchmarks/masking.py [ROUNDS] [OLD]`.

OLD is another version's masking module as a file (`git show REVISION:agent_token_injector/masking.py > OLD`): it is
measured in the same run, each case in turn with ours.
"""

from __future__ import annotations

import importlib.util
import json
import random
import string
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pydantic import SecretStr

from agent_token_injector import masking

SECRETS = (1, 10, 100, 1000)
SIZES = {"300 B": 300, "16 KiB": 16 << 10, "1 MiB": 1 << 20}
PREFIXES = ("ghs_", "sk_live_", "postgres://app:", "")


def secrets(count: int) -> list[str]:
    """Tokens as vendors make them."""
    rng = random.Random(count)  # noqa: S311 - the same ones in every run
    return [
        rng.choice(PREFIXES) + "".join(rng.choices(string.ascii_letters + string.digits, k=32)) for _ in range(count)
    ]


def log_text(size: int) -> str:
    """A log: words, numbers, times, paths and digests."""
    rng = random.Random(size)  # noqa: S311 - the same one in every run
    words = ("request", "served", "from", "cache", "the", "user", "with", "order", "GET", "status", "retry", "in", "ms")
    lines: list[str] = []
    length = 0
    while length < size:
        some = " ".join(rng.choices(words, k=9))
        line = f"2026-11-23T10:{rng.randrange(60):02}:07Z {some} /srv/app/{rng.randrange(10**6)}.json {rng.randbytes(8).hex()}"
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines)[:size]


def result(text: str) -> dict[str, Any]:
    """A tool's result."""
    return {"content": [{"type": "text", "text": text}], "isError": False}


def results(size: int) -> dict[str, dict[str, Any]]:
    """Results of one size: what there is to do with them differs."""
    text = log_text(size - len(json.dumps(result(""))))
    rows = [{"id": number, "line": line, "ok": True} for number, line in enumerate(text.splitlines())]
    return {
        "a log": result(text),
        "a log as JSON in JSON": result(json.dumps({"log": text})[: len(text)]),
        "rows": {"structuredContent": {"rows": rows}},
    }


def seconds(call: Callable[[], object], rounds: int) -> float:
    """The fastest of some rounds: what the work takes when nothing else is in the way."""
    call()
    began = time.perf_counter()
    call()
    many = max(1, min(5000, int(0.01 / (time.perf_counter() - began + 1e-9))))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(many):
            call()
        best = min(best, (time.perf_counter() - began) / many)
    return best


def load(path: str) -> ModuleType:
    """Another version of the module."""
    spec = importlib.util.spec_from_file_location("masking_of_another_version", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print a table: microseconds and MB/s of `json_counted`, with nothing to mask and with one secret in it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    versions = {"": masking} | ({"old": load(sys.argv[2])} if len(sys.argv) > 2 else {})
    print(f"{'result':<42}" + "".join(f"{f'{count} secrets':>24}" for count in SECRETS))
    for size_name, size in SIZES.items():
        for name, value in results(size).items():
            length = len(json.dumps(value))
            for hidden in (False, True):
                for version, module in versions.items():
                    cells = []
                    for count in SECRETS:
                        known = secrets(count)
                        redactor = module.Redactor(SecretStr(secret) for secret in known)
                        shown = {**value, "_meta": {"note": f"Bearer {known[count // 2]}"}} if hidden else value
                        taken = seconds(lambda r=redactor, s=shown: r.json_counted(s), rounds)
                        cells.append(f"{taken * 1e6:>12.1f} us {length / taken / 1e6:>4.0f} MB/s")
                    label = f"{size_name} {name}{' + a secret' if hidden else ''}"
                    print(f"{label + ' ' + version:<42}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
