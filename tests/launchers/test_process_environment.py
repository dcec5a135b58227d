"""What an agent finds when it starts: exactly what it was given (D7)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.launchers.base import OWN_NAMES
from agent_token_injector.launchers.process import ProcessLauncher
from tests.launchers.agents import PATIENCE, context, line, output, parent_environment, python, told
from tests.requirements import requirement

TOKEN = "ghs_0123456789abcdef"
SHOW = "import os, json; print(json.dumps(dict(os.environ)))"
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True) | st.sampled_from(
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "NODE_OPTIONS",
        "BASH_ENV",
        "GIT_ASKPASS",
        "SSH_AUTH_SOCK",
        "AWS_SECRET_ACCESS_KEY",
        "GH_TOKEN",
        "HOME",
        "XDG_RUNTIME_DIR",
        "HANDOFF_TASK_SLUG",
        "LC_ALL",
    ]
)


@requirement("D7.env-from-nothing")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.from_regex(r"[a-z/]{0,20}", fullmatch=True), max_size=8))
@example({"LD_PRELOAD": "/nowhere.so", "PYTHONHOME": "/nowhere", "AWS_SECRET_ACCESS_KEY": "admin", "PATH": "/nowhere"})
def test_the_environment_is_exactly_the_base_and_the_block_whatever_the_parents_holds(block: dict[str, str]) -> None:
    with parent_environment({**block, "TERM": "xterm-256color"}):
        # env(1) adds nothing to what it shows; an interpreter may coerce its locale.
        agent = ProcessLauncher(["env", "-0"], stdout=subprocess.PIPE)(
            context({"GH_TOKEN": SecretStr(TOKEN), "HANDOFF_TASK_SLUG": "founders-checkout", "GREETING": "ä=b\nc"})
        )
        env = dict(pair.split("=", 1) for pair in output(agent).split("\0") if pair)
    home = env["HOME"]
    root = str(Path(home).parent)
    assert env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "xterm-256color",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "HOME": home,
        "TMPDIR": f"{root}/tmp",
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "HANDOFF_RUN_ID": env["HANDOFF_RUN_ID"],
        "GH_TOKEN": TOKEN,
        "HANDOFF_TASK_SLUG": "founders-checkout",
        "GREETING": "ä=b\nc",
    }
    assert set(env) < OWN_NAMES | {"GH_TOKEN", "HANDOFF_TASK_SLUG", "GREETING"}


@requirement("D7.env-from-nothing")
@pytest.mark.parametrize(
    ("given_term", "term"),
    [("screen.xterm-256color", "screen.xterm-256color"), ("x\x1b[2J", "dumb"), ("../../etc", "dumb"), ("", "dumb")],
)
def test_the_terminals_name_is_taken_over_only_when_it_is_a_plain_token(given_term: str, term: str) -> None:
    with parent_environment({"TERM": given_term}):
        agent = ProcessLauncher(python(SHOW), stdout=subprocess.PIPE)(context())
        assert told(agent)["TERM"] == term


@requirement("D7.fresh-home")
def test_home_and_its_like_are_fresh_folders_of_this_run_alone_and_gone_after_it(runs: Path) -> None:
    code = """
import os, json
names = ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"]
paths = {name: os.environ[name] for name in names} | {"ROOT": os.path.dirname(os.environ["HOME"])}
open(os.environ["HOME"] + "/notes", "w").close()
print(json.dumps({name: [path, os.stat(path).st_mode, os.stat(path).st_uid] for name, path in paths.items()}))
"""
    umask = os.umask(0o277)
    try:
        agent = ProcessLauncher(python(code), stdout=subprocess.PIPE)(context())
    finally:
        os.umask(umask)
    found = told(agent)
    assert {stat.S_IMODE(mode) for _, mode, _ in found.values()} == {0o700}
    assert {uid for _, _, uid in found.values()} == {os.getuid()}
    assert all(Path(path).is_relative_to(runs) and not Path(path).exists() for path, _, _ in found.values())


@requirement("D7.mcp-config")
def test_the_mcp_configuration_is_a_private_file_in_home_that_a_variable_names() -> None:
    code = """
import os, json
path = os.environ["HANDOFF_MCP_CONFIG"]
print(json.dumps([path == os.environ["HOME"] + "/.config/handoff/mcp.json", os.stat(path).st_mode & 0o777,
                  os.stat(os.path.dirname(path)).st_mode & 0o777, json.load(open(path))]))
"""
    config = {
        "mcpServers": {"handoff": {"url": "http://127.0.0.1:1/", "headers": {"A": "Bearer ${HANDOFF_MCP_TOKEN}"}}}
    }
    agent = ProcessLauncher(python(code), stdout=subprocess.PIPE)(context(mcp_config=config))
    assert told(agent) == [True, 0o600, 0o700, config]


@requirement("D7.mcp-config")
def test_without_mcp_tools_there_is_no_mcp_configuration() -> None:
    agent = ProcessLauncher(python(SHOW), stdout=subprocess.PIPE)(context())
    assert "HANDOFF_MCP_CONFIG" not in told(agent)


@requirement("spawn.only-stdio")
def test_the_agent_has_only_its_three_streams_open_even_when_the_parent_leaks(tmp_path: Path) -> None:
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        code = "import os, json; print(json.dumps([fd for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]))"
        agent = ProcessLauncher(python(code), stdout=subprocess.PIPE)(context())
        assert sorted(told(agent)) == ["0", "1", "2"]
    finally:
        os.close(leak)


@requirement("spawn.hardened", "H6.no-core-dump")
def test_the_agent_starts_in_its_own_session_without_new_privileges_core_dumps_or_inherited_signals() -> None:
    # A program that shows itself: a shell blocks signals of its own now and then.
    shown = output(ProcessLauncher(["cat", "/proc/self/status"], stdout=subprocess.PIPE)(context()))
    facts = dict(entry.split(":", 1) for entry in shown.splitlines())
    assert int(facts["NoNewPrivs"]) == 1
    assert int(facts["SigBlk"], 16) == 0
    assert int(facts["SigIgn"], 16) == 0
    assert facts["Umask"].strip() == "0077"
    show = "import os, resource; print(os.getsid(0), *resource.getrlimit(resource.RLIMIT_CORE))"
    agent = ProcessLauncher(python(show), stdout=subprocess.PIPE)(context())
    assert output(agent).split() == [str(agent.pid), "0", "0"]


@requirement("spawn.streams")
def test_input_is_empty_unless_one_is_given() -> None:
    agent = ProcessLauncher(["cat"], stdout=subprocess.PIPE)(context())
    assert output(agent) == ""
    piped = ProcessLauncher(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)(context())
    assert piped.stdin is not None
    piped.stdin.write(b"hello\n")
    piped.stdin.close()
    assert output(piped) == "hello\n"


@requirement("spawn.streams")
def test_streams_can_be_files_and_the_start_can_be_in_another_folder(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        agent = ProcessLauncher(["pwd"], cwd=tmp_path, stdout=out)(context())
        assert agent.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_text().strip() == str(tmp_path)


@requirement("H6.no-secret-in-proc")
def test_no_secret_is_in_a_command_line_nor_in_the_supervisors_environment() -> None:
    agent = ProcessLauncher(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)(
        context({"GH_TOKEN": SecretStr(TOKEN)})
    )
    assert agent.stdin is not None
    agent.stdin.write(b"ready\n")
    agent.stdin.flush()
    assert line(agent.stdout) == "ready"
    assert TOKEN in Path(f"/proc/{agent.pid}/environ").read_text()
    for name in (f"{agent.pid}/cmdline", f"{agent.supervisor_pid}/cmdline", f"{agent.supervisor_pid}/environ"):
        try:
            assert TOKEN not in Path("/proc", name).read_text()
        except PermissionError:
            assert os.geteuid() != 0
    if os.geteuid() == 0:
        assert Path(f"/proc/{agent.supervisor_pid}/environ").read_bytes() == b""
    assert TOKEN not in repr(agent)
    agent.stdin.close()
    assert output(agent) == ""


@requirement("spawn.light-supervisor")
def test_the_supervisor_is_a_program_of_its_own_that_needs_nothing_of_this_package() -> None:
    from agent_token_injector.launchers import supervisor

    show = (
        "import sys; f = sys.argv[1]; exec(compile(open(f).read(), f, 'exec'), {'__name__': 'it', '__package__': None, '__file__': f})"
        "; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", show, supervisor.__file__], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not {"typing", "pathlib", "subprocess", "socket", "dataclasses"} & loaded
    assert not any(name.startswith(("agent_token_injector", "pydantic")) for name in loaded)
