"""The official MCP conformance suite (npm @modelcontextprotocol/conformance), run against a server and read back.

`expected.json` says, for each revision, how many checks each scenario passes against our reference server directly; what
comes out otherwise through the proxy, with the reason; and which scenarios ask for nothing that only
their own era has, so that they pass with a server of the other era behind the proxy.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests import peers

REVISIONS: Final = ("2025-11-25", "2026-07-28")
EXPECTED: Final[Mapping[str, Any]] = json.loads(Path(__file__).with_name("expected.json").read_text(encoding="utf-8"))
SUITE_SECONDS: Final = 90.0
SCENARIO_MS: Final = 15_000

Check = tuple[str, str]
"""A check's id, and SUCCESS, WARNING, FAILURE or SKIPPED."""
Results = Mapping[str, Counter[Check]]
"""What each scenario found; a check may be made several times. What the suite only notes (INFO) is left out."""

_FOLDER: Final = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


def run_suite(url: str, revision: str, out: Path, *, scenario_ms: int = SCENARIO_MS) -> Results:
    """Every scenario of a revision against the server at `url`. The suite's own files stay in `out`."""
    suite = peers.npm_program("@modelcontextprotocol/conformance")
    options = ("--suite", "all", "--spec-version", revision, "--timeout", str(scenario_ms), "--output-dir", str(out))
    done = subprocess.run(
        (*suite, "server", "--url", url, *options),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS,
        check=False,
    )
    found: dict[str, Counter[Check]] = {}
    for folder in sorted(out.iterdir()):
        named = _FOLDER.fullmatch(folder.name)
        assert named is not None, folder.name
        checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
        found[named["scenario"]] = Counter((one["id"], one["status"]) for one in checks if one["status"] != "INFO")
    assert found, f"the suite ran nothing: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return found


def passed(results: Results) -> dict[str, int]:
    """How many checks each scenario passed."""
    return {
        scenario: sum(count for (_, status), count in checks.items() if status == "SUCCESS")
        for scenario, checks in results.items()
    }


def failed(results: Results) -> dict[str, list[Check]]:
    """The checks that did not pass, of the scenarios that have any."""
    bad = {scenario: sorted(one for one in checks if one[1] != "SUCCESS") for scenario, checks in results.items()}
    return {scenario: checks for scenario, checks in bad.items() if checks}


def difference(direct: Results, proxied: Results) -> dict[str, dict[str, list[Check]]]:
    """Per scenario, the checks that came out only one way: `lost` directly, `found` through the proxy."""
    differs: dict[str, dict[str, list[Check]]] = {}
    for scenario in sorted({*direct, *proxied}):
        before, after = direct.get(scenario, Counter()), proxied.get(scenario, Counter())
        if before != after:
            differs[scenario] = {
                "lost": sorted((before - after).elements()),
                "found": sorted((after - before).elements()),
            }
    return differs


def explained(out: Path) -> str:
    """What the suite has to say of each check in `out` that did not pass, one a line."""
    lines = []
    for found in sorted(out.glob("*/checks.json")):
        for one in json.loads(found.read_text(encoding="utf-8")):
            if one["status"] not in ("SUCCESS", "INFO"):
                details = json.dumps(one.get("details"))[:500]
                lines.append(f"{found.parent.name}: {one['id']} {one['status']} {one.get('errorMessage')} {details}")
    return "\n".join(lines)
