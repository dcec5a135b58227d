"""What the pages say is so: their code runs, their commands work, and their tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_token_injector.clock import SystemClock
from agent_token_injector.errors import ExitCode
from agent_token_injector.gate import check
from agent_token_injector.policy import Policy
from agent_token_injector.spec import HandoffSpec
from tests.requirements import requirement
from tests.world import EXAMPLES, ROOT, World, make_world

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PACKAGE = ROOT / "agent_token_injector"


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", page, flags=re.MULTILINE | re.DOTALL
    )
    assert found is not None, heading
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        shutil.copytree(EXAMPLES, made.home / "examples")
        shutil.copy(EXAMPLES / "minimal" / "handoff-spec.json", made.home)
        yield made


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """The commands as an installation puts them on PATH."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        script = folder / name
        script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)
    return folder


@requirement("docs.readme-python")
@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_readmes_python_runs_as_it_stands(world: World, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block],
        env=world.environment,
        cwd=world.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"


@requirement("docs.readme-commands")
def test_the_readmes_commands_run_as_they_stand_in_their_order(world: World, bin_dir: Path) -> None:
    consoles = "\n".join(blocks(section(README, "## Use it"), "console"))
    lines = re.findall(r"^\$ (handoff .*)$", consoles, flags=re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        done = subprocess.run(
            shlex.split(line),
            env={**world.environment, "PATH": f"{bin_dir}:/usr/local/bin:/usr/bin:/bin"},
            executable=str(bin_dir / "handoff"),
            cwd=world.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@requirement("docs.readme-commands")
def test_every_command_that_a_page_names_exists() -> None:
    from agent_token_injector.cli import COMMANDS

    for page in PAGES:
        named = set(re.findall(r"`handoff ([a-z]+)", page.read_text()))
        assert named <= set(COMMANDS), page.name


@requirement("docs.links")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@requirement("docs.files-named")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_of_this_project_that_a_page_names_exists(page: Path) -> None:
    for name in set(re.findall(r"`((?:docs|examples|tests|agent_token_injector)/[\w./-]+)`", page.read_text())):
        assert (ROOT / name).exists(), name
    if page.name == "architecture.md":
        for name in set(re.findall(r"`(\w+(?:/\w+)?\.py|\w+/)`", page.read_text())):
            assert (PACKAGE / name).exists(), name


@requirement("docs.layers")
def test_the_layers_drawn_are_those_that_are_held() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = re.findall(r"^ {4}(\S.*)$", section(ARCHITECTURE, "## Layers"), flags=re.MULTILINE)
    assert drawn == held


@requirement("docs.exit-codes")
def test_the_exit_codes_in_the_table_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| \S.*\|$", section(ARCHITECTURE, "## Exit codes"), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]


@requirement("docs.modules")
def test_every_module_of_the_top_level_is_named_in_the_architecture() -> None:
    for path in sorted(PACKAGE.iterdir()):
        if path.name.startswith("_") or path.name == "py.typed":
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        assert f"`{name}`" in ARCHITECTURE, name


@requirement("docs.variables")
def test_the_variables_in_the_readme_are_those_that_are_read() -> None:
    source = (PACKAGE / "settings.py").read_text()
    read = set(re.findall(r"HANDOFF_[A-Z_]+[A-Z]\b", source))
    # The docstring of GitHub's four variables writes the first one out and the endings of the others.
    read |= {f"HANDOFF_GITHUB{ending}" for ending in re.findall(r"(?<=[ ,])(_[A-Z_]+)(?=[, ])", source)}
    table = "\n".join(line for line in section(README, "## Set it up").splitlines() if line.startswith("|"))
    named = set(re.findall(r"HANDOFF_[A-Z_]+", table))
    assert named == read


@requirement("docs.spec-examples")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/handoff-spec.json")), ids=lambda path: path.parent.name)
def test_every_example_spec_passes_the_gate(path: Path) -> None:
    assert check(HandoffSpec.load(path), Policy(), SystemClock().now()).refusals == ()


@requirement("docs.no-machine")
def test_no_page_speaks_of_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(?:work|root|home)/", page.read_text()), page.name


@requirement("docs.variables")
def test_the_readmes_policy_file_is_accepted_and_tightens() -> None:
    found = re.search(r"`policy\.json` \|[^|]*?`(\{.*?\})`", README)
    assert found is not None
    tightened = Policy().tightened(json.loads(found[1]))
    assert tightened.loosened() == ()
    assert tightened.digest != Policy().digest
