"""The package as an importer meets it: its names, what it loads, its errors, and what it ships."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files

import click
import pytest

import agent_token_injector
from agent_token_injector import cli, errors
from agent_token_injector.errors import ExitCode, HandoffError
from tests.requirements import requirement
from tests.world import EXAMPLES

PUBLIC = agent_token_injector.__all__
HEAVY = ("httpx", "mcp", "rich", "cryptography", "pydantic", "click", "jsonschema_rs", "uvicorn", "sqlite3")


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of the named packages a fresh interpreter has loaded after some code."""
    probe = f"import sys\n{code}\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


@requirement("face.names")
def test_the_public_names_are_sorted_complete_and_there() -> None:
    assert sorted(PUBLIC) == PUBLIC
    assert len(set(PUBLIC)) == len(PUBLIC)
    assert set(PUBLIC) <= set(dir(agent_token_injector))
    for name in PUBLIC:
        assert getattr(agent_token_injector, name).__name__ == name


@requirement("face.names")
def test_every_public_name_comes_from_the_module_that_it_says() -> None:
    for name in PUBLIC:
        thing = getattr(agent_token_injector, name)
        assert thing.__module__.startswith("agent_token_injector.")
        assert getattr(importlib.import_module(thing.__module__), name) is thing


@requirement("face.names")
def test_the_type_checkers_names_are_those_at_run_time() -> None:
    source = inspect.getsource(agent_token_injector)
    typed = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    imported = re.findall(r"^ {8}(\w+),$|import (\w+(?:, \w+)*)$", typed, flags=re.MULTILINE)
    names = {name.strip() for pair in imported for group in pair for name in group.split(",") if name.strip()}
    assert names == set(PUBLIC)


@requirement("face.names")
def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        agent_token_injector.no_such_name  # noqa: B018 - the access is what is tested


@requirement("face.docstrings")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_promises(name: str) -> None:
    assert (getattr(agent_token_injector, name).__doc__ or "").strip()


@requirement("face.light-import")
def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import agent_token_injector", *HEAVY) == set()


@requirement("face.light-import")
def test_help_loads_neither_the_network_nor_the_drawing() -> None:
    code = """
import contextlib, io
from agent_token_injector.cli import run, group
with contextlib.redirect_stdout(io.StringIO()):
    assert run(group, ["--help"], name="handoff") == 0
"""
    assert loaded_by(code, "rich", "httpx", "pydantic", "mcp", "cryptography", "uvicorn", "sqlite3") == set()


def commands() -> Iterator[tuple[str, click.Command]]:
    from agent_token_injector.cli.provision_handoff_identity import command

    context = click.Context(cli.group)
    yield "provision_handoff_identity", command
    for name in cli.group.list_commands(context):
        found = cli.group.get_command(context, name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in found.commands.items())


@requirement("cli.help", "cli.json")
@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_every_option_says_what_it_does(name: str, command: click.Command) -> None:
    assert (command.help or "").strip(), name
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all((option.help or "").strip() for option in options)
    if not isinstance(command, click.Group):
        assert "--json" in {spelling for option in options for spelling in option.opts}


@requirement("cli.help")
def test_the_help_lists_every_command_with_its_line() -> None:
    text = cli.group.get_help(click.Context(cli.group, info_name="handoff"))
    for name, line in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", text, flags=re.MULTILINE)


@requirement("cli.help", "cli.exit-codes")
def test_the_help_tells_the_exit_codes() -> None:
    text = " ".join(cli.group.get_help(click.Context(cli.group, info_name="handoff")).split())
    told = dict(re.findall(r"(\d) ([a-z ]+?)(?:,|\.)", text[text.index("Exit codes:") :]))
    assert set(map(int, told)) == {int(code) for code in ExitCode}


@requirement("face.ships")
def test_the_package_ships_its_types_and_the_demos_spec() -> None:
    package = files("agent_token_injector")
    assert package.joinpath("py.typed").is_file()
    shipped = package.joinpath("sandbox", "founders_checkout.json").read_bytes()
    assert shipped == (EXAMPLES / "founders_checkout" / "handoff-spec.json").read_bytes()


def tree(of: type[HandoffError]) -> set[type[HandoffError]]:
    return {of}.union(*(tree(child) for child in of.__subclasses__() if child.__module__ == errors.__name__))


@requirement("face.errors")
def test_the_error_tree_is_as_it_is_drawn() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^( +(?:\| +)*)(?:[|`]- )?([A-Z]\w+)(?:\s{2,}|$)", line)
        if found is None:
            continue
        depth, name = line.index(found[2]), found[2]
        above = [entry for entry in above if entry[0] < depth]
        drawn[name] = above[-1][1] if above else "Exception"
        above.append((depth, name))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in tree(HandoffError)}


@requirement("face.errors", "cli.exit-codes")
def test_every_error_has_a_code_of_its_own_and_an_exit_code() -> None:
    kinds = tree(HandoffError)
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(\.[a-z-]+)+", kind.code) for kind in kinds)
    assert all(isinstance(kind.exit_code, ExitCode) and kind.exit_code is not ExitCode.OK for kind in kinds)


@requirement("face.errors")
def test_every_error_class_that_a_caller_may_catch_broadly_is_public() -> None:
    assert {kind.__name__ for kind in HandoffError.__subclasses__() if kind.__module__ == errors.__name__} <= set(
        PUBLIC
    )
