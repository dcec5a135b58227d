"""The manifest of requirements and the tests are bound both ways."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.requirements import REQUIREMENTS, requirement
from tests.world import ROOT

COLLECT = """
import pytest, sys

class Tags:
    def pytest_collection_finish(self, session):
        for item in session.items:
            for marker in item.iter_markers("requirement"):
                print("TAG", *marker.args)

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"], plugins=[Tags()]))
"""


@pytest.fixture(scope="module")
def tags() -> set[str]:
    """Every tag of every test, whatever was selected for this run."""
    done = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return {name for line in done.stdout.splitlines() if line.startswith("TAG ") for name in line.split()[1:]}


def test_every_requirement_has_a_test(tags: set[str]) -> None:
    assert set(REQUIREMENTS) - tags == set()


def test_every_tag_is_a_requirement(tags: set[str]) -> None:
    assert tags - set(REQUIREMENTS) == set()


def test_every_invariant_of_the_adr_and_every_decision_of_the_design_is_among_them() -> None:
    areas = {name.partition(".")[0] for name in REQUIREMENTS}
    assert {f"H{number}" for number in range(1, 9)} <= areas
    assert {f"D{number}" for number in range(1, 13) if number != 12} <= areas
    assert any(one.source == "D12" for one in REQUIREMENTS.values())


def test_every_requirement_says_what_and_whence() -> None:
    for name, one in REQUIREMENTS.items():
        assert re.fullmatch(r"[A-Za-z0-9]+(\.[a-z0-9-]+)+", name), name
        assert one.source, name
        assert one.text.endswith("."), name


@requirement("D11.layers")
def test_imports_go_down_only_and_the_pure_core_does_no_input_or_output() -> None:
    lint = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
