"""`handoff demo`: the product's first impression, true in every line, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.errors import ExitCode
from tests.cli.support import GITHUB, HANDOFF, LIVE_STRIPE, MINIMAL
from tests.requirements import requirement
from tests.world import EXAMPLES, ROOT


class Room:
    """An empty HOME and an empty TMPDIR to run the demo in, under a reaper that knows what it leaves behind."""

    def __init__(self, path: Path) -> None:
        self.home, self.tmp = path / "home", path / "tmp"
        self.home.mkdir()
        self.tmp.mkdir()

    def demo(self, *argv: str, mark: str = "", number: str = "SIGINT") -> dict[str, Any]:
        environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT)]),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.cli.reaper", mark, number, *HANDOFF, "demo", *argv],
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def assert_empty(self, report: dict[str, Any]) -> None:
        assert report["left"] == []
        assert list(self.home.iterdir()) == []
        assert list(self.tmp.iterdir()) == []


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def in_order(text: str, parts: Sequence[str]) -> None:
    """Each part, as a regular expression, after the one before."""
    at = 0
    for part in parts:
        found = re.compile(part).search(text, at)
        assert found is not None, f"{part!r} is not in what follows:\n{text[at:]}"
        at = found.end()


@requirement("demo.shows", "demo.no-trace")
def test_the_demo_shows_the_whole_life_of_a_handoff_and_leaves_nothing(room: Room) -> None:
    report = room.demo()
    assert report["code"] == 0, report["out"]
    day = r"\d{8}"
    in_order(
        report["out"],
        [
            r"founders-checkout, card #3206",
            r"\[x\] Infisical: ",
            r"\[x\] Linked card: #3206",
            r"the gate is open",
            r"✗ refused there is no handoff founders-checkout-.*; 0 launches",
            rf"✗ refused a key that could also refund: stripe-restricted-handoff-founders-checkout-{day} can do more",
            rf"✓ infisical infisical-handoff-founders-checkout-{day} \(minted, lives 24 h\)",
            r"read: /MooseQuest/handoffs/founders-checkout-\d{8}/\*, /MooseQuest/queue/staging/STRIPE_\*",
            rf"✓ github gh-token-handoff-founders-checkout-{day} \(minted, lives (59 min|1 h)",
            r"permissions: contents: write, pull_requests: write",
            rf"✓ stripe stripe-restricted-handoff-founders-checkout-{day} \(operator-supplied, no expiry of its own\)",
            r"✓ signature of key [0-9a-f]{16}, spec digest and 4 secrets are as signed",
            r"GH_TOKEN=\*+\n",
            r"STRIPE_KEY=\*+\n",
            r"HANDOFF_TASK_SLUG=founders-checkout\n",
            r"it sees github_pr_create, github_pr_comment, infisical_get_secret and nothing else",
            r"✓ github_pr_create into main of its own repository\n +number: 1, state: open",
            r"✗ refused github_pr_create in another owner's repository",
            r"✗ refused merge_pull_request, which is not on the list",
            r"✓ infisical_get_secret /MooseQuest/queue/staging/STRIPE_WEBHOOK_SECRET",
            r"✗ refused infisical_get_secret /MooseQuest/velvet/PRODUCTION_KEY, outside its own",
            r"exit code 0; 0 of its processes are left",
            r"refused tool\.denied +tools/call github_pr_create \(arguments\)",
            r"refused vault\.read +/MooseQuest/velvet/PRODUCTION_KEY \(forbidden\)",
            r"✓ \d+ events, hash-chained, none altered, removed, reordered or cut off",
            r"✓ infisical dead in \d+ ms: ",
            r"✓ github dead in \d+ ms: .*401",
            r"… stripe still alive: ",
            r"✓ stripe dead in \d+ ms: .*401",
            r"✗ refused dispatching it again",
            r"No residue\. 3 credentials given and seen dead, 7 attempts refused",
        ],
    )
    room.assert_empty(report)


@requirement("demo.spec", "demo.no-trace")
def test_the_demo_shows_a_spec_that_needs_no_vendor(room: Room) -> None:
    report = room.demo(str(EXAMPLES / "minimal" / "handoff-spec.json"))
    assert report["code"] == 0, report["out"]
    in_order(report["out"], ["nightly-report, card #1", "GitHub: ", "✓ infisical", r"No residue\. 1 credential given"])
    room.assert_empty(report)


@requirement("demo.spec")
def test_the_demo_shows_a_repository_of_any_owner(room: Room, tmp_path: Path) -> None:
    surfaces = {"github": {"repository": "acme/shop", "permissions": {"issues": "write"}}}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**GITHUB, "surfaces": surfaces}))
    report = room.demo(str(path), "--json")
    assert report["code"] == 0, report["out"]
    record = json.loads(report["out"])
    assert (record["ok"], record["failures"], record["receipt"]["ok"]) == (True, [], True)


@pytest.mark.parametrize(
    ("document", "code", "names"),
    [
        (LIVE_STRIPE, ExitCode.GATE_REFUSED, "the gate refuses this handoff"),
        (
            json.loads((EXAMPLES / "iap_notif_handler" / "handoff-spec.json").read_text()),
            ExitCode.USAGE,
            "the demo cannot show apple_iap",
        ),
        (
            {**MINIMAL, "mcp_servers": {"other": {"command": ["no-such-mcp-server"]}}, "mcp_tools": ["other_tool"]},
            ExitCode.FAILED_CLEAN,
            "no-such-mcp-server",
        ),
    ],
    ids=["refused by the gate", "a surface that is not provisioned yet", "a server that is not installed"],
)
@requirement("demo.spec", "demo.no-trace")
def test_a_spec_that_the_demo_cannot_show_is_refused_clearly(
    room: Room, tmp_path: Path, document: dict[str, Any], code: int, names: str
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    report = room.demo(str(path))
    assert report["code"] == code
    assert names in report["out"]
    assert "Traceback" not in report["out"]
    assert "Dispatch before provisioning" not in report["out"]
    room.assert_empty(report)


INTERRUPTIONS = [
    ("handoff demo", "SIGINT"),
    ("3. Step 0", "SIGINT"),
    ("✓ github", "SIGTERM"),
    ("5. The agent", "SIGINT"),
    ("5. The agent", "SIGTERM"),
    ("it sees", "SIGINT"),
    ("7. The kill-switch", "SIGINT"),
]


@pytest.mark.parametrize(("mark", "number"), INTERRUPTIONS)
@requirement("demo.no-trace")
def test_an_interrupted_demo_leaves_nothing(room: Room, mark: str, number: str) -> None:
    report = room.demo(mark=mark, number=number)
    assert report["signalled"]
    assert report["code"] == {"SIGINT": 130, "SIGTERM": 143}[number], report["out"]
    assert "Traceback" not in report["out"]
    room.assert_empty(report)


@requirement("demo.terminal")
@pytest.mark.parametrize("columns", [80, 120])
def test_at_a_terminal_no_line_of_the_demo_runs_over_its_edge(room: Room, columns: int) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_A_TERMINAL,
            str(columns),
            *HANDOFF,
            "demo",
            str(EXAMPLES / "minimal/handoff-spec.json"),
        ],
        env={"HOME": str(room.home), "TMPDIR": str(room.tmp), "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        capture_output=True,
        timeout=100,
        check=True,
    )
    drawn = done.stdout.decode()
    assert "\x1b[" in drawn
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert max(len(line) for line in plain.splitlines()) <= columns
    assert "No residue." in plain


IN_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios

pid, ours = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, int(sys.argv[1]), 0, 0))
    os.execv(sys.argv[2], sys.argv[2:])
while True:
    try:
        chunk = os.read(ours, 65536)
    except OSError:
        break
    if not chunk:
        break
    sys.stdout.buffer.write(chunk)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
