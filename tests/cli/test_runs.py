"""`handoff spawn` and `handoff exec`: the agent's exit code, the signals, and the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from agent_token_injector.errors import ExitCode
from tests.cli.support import GITHUB, HANDOFF, MINIMAL, provisioned, run, start, write
from tests.requirements import requirement
from tests.world import World

WAIT = "while :; do sleep 0.05; done"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
@requirement("cli.exit-passed-through")
def test_spawn_exits_as_its_agent_did(world: World, script: str, code: int) -> None:
    assert run(world, ["spawn", provisioned(world), "--", "sh", "-c", script]).returncode == code


@requirement("cli.stdin-passed-through")
def test_the_agent_reads_our_stdin_and_writes_our_stdout(world: World) -> None:
    done = run(world, ["spawn", provisioned(world), "--", "cat"], stdin="through\n")
    assert done.stdout == "through\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@requirement("cli.signals")
def test_a_signal_to_handoff_is_passed_on_to_the_agent(world: World, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; {WAIT}"
    with start(world, "spawn", provisioned(world), "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (f"got {name}\n", 9)


@requirement("cli.signals")
def test_a_second_signal_of_a_kind_ends_an_agent_that_does_not_go(world: World) -> None:
    script = f"trap 'echo heard' INT; echo ready; {WAIT}"
    with start(world, "spawn", provisioned(world), "--revoke-on-exit", "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "gone, no residue" in err


@requirement("cli.signals")
def test_a_signal_that_our_caller_ignores_stays_ignored(world: World) -> None:
    script = f"echo ready; {WAIT}"
    argv = [*HANDOFF, "spawn", provisioned(world), "--", "sh", "-c", script]
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *argv]
    with subprocess.Popen(nohup, env=world.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


@requirement("cli.exec", "H2.exec-revokes")
def test_exec_exits_as_the_job_did_and_leaves_nothing(world: World) -> None:
    spec = write(world, "spec.json", GITHUB)
    done = run(world, ["exec", spec, "--", "sh", "-c", 'test -n "$GH_TOKEN" && exit 7'])
    assert done.returncode == 7
    assert "gone, no residue" in done.stderr
    assert world.live_minted() == ()
    assert run(world, ["list", "--json"]).stdout == "[]\n"


@pytest.mark.parametrize("command", [["no-such-command"], ["/nonexistent/agent"], ["/etc/passwd"]])
@requirement("cli.exec", "H2.exec-revokes")
def test_exec_revokes_when_the_job_cannot_be_started(world: World, command: list[str]) -> None:
    done = run(world, ["exec", write(world, "spec.json", GITHUB), "--", *command])
    assert done.returncode == ExitCode.FAILED_CLEAN
    assert command[0] in done.stderr
    assert world.live_minted() == ()
    assert run(world, ["list", "--json"]).stdout == "[]\n"


@requirement("cli.exec", "cli.exit-codes")
def test_exec_exits_5_when_the_job_succeeded_and_only_a_person_can_end_its_key(world: World) -> None:
    spec = world.write_spec().name
    key = world.stripe_key().get_secret_value()
    done = run(world, ["exec", spec, "--supply", "stripe=-", "--json", "--", "true"], stdin=f"{key}\n")
    assert done.returncode == ExitCode.RESIDUE, done.stderr
    assert json.loads(done.stdout)["revocation"]["ok"] is False
    assert "stripe" in done.stderr
    world.delete_stripe_keys()
    handoff = json.loads(done.stdout)["handoff_id"]
    assert run(world, ["revoke", handoff]).returncode == 0


@requirement("cli.exec")
def test_exec_keep_leaves_the_handoff_until_it_expires(world: World) -> None:
    spec = write(world, "spec.json", MINIMAL)
    assert run(world, ["exec", spec, "--keep", "--", "true"]).returncode == 0
    assert [row["state"] for row in json.loads(run(world, ["list", "--json"]).stdout)] == ["provisioned"]


@requirement("cli.exec", "H1.own-identity")
def test_exec_leaves_a_handoff_alone_that_another_run_may_be_using(world: World) -> None:
    handoff = provisioned(world, GITHUB)
    done = run(world, ["exec", "spec.json", "--", "true"])
    assert done.returncode == ExitCode.FAILED_CLEAN
    assert f"handoff spawn {handoff}" in done.stderr
    assert len(world.live_minted()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["provision", "exec"])
@requirement("cli.signals", "D4.interrupted")
def test_a_signal_while_provisioning_undoes_what_was_minted(world: World, command: str, number: signal.Signals) -> None:
    tail = ["--", "sh", "-c", "exit 0"] if command == "exec" else []
    with start(world, command, write(world, "spec.json", GITHUB), *tail) as process:
        assert process.stderr is not None
        while "github" not in process.stderr.readline():
            pass
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode == 128 + number
    assert world.live_minted() == ()
    assert run(world, ["list", "--json"]).stdout == "[]\n"


@requirement("cli.signals", "H2.exec-revokes")
def test_exec_revokes_when_its_job_is_told_to_end(world: World) -> None:
    with start(world, "exec", write(world, "spec.json", GITHUB), "--", "sh", "-c", f"echo ready; {WAIT}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "gone, no residue" in err
    assert world.live_minted() == ()


@requirement("cli.json")
@pytest.mark.parametrize("command", [["true"], ["echo", "not json"], ["/nonexistent/agent"], ["echo", "--json"]])
def test_with_json_nothing_of_the_agent_is_on_stdout(world: World, command: list[str]) -> None:
    done = run(world, ["spawn", provisioned(world), "--json", "--", *command])
    document = json.loads(done.stdout)
    assert ("error" in document) == (done.returncode != 0)


@requirement("cli.json")
def test_an_option_of_the_agent_is_not_taken_for_ours(world: World) -> None:
    done = run(world, ["spawn", provisioned(world), "--", "/nonexistent/agent", "--json"])
    assert (done.returncode, done.stdout) == (ExitCode.FAILED_CLEAN, "")


@requirement("D10.reader-gone")
@pytest.mark.parametrize("streams", ["stdout", "stderr", "both"])
def test_the_kill_switch_finishes_when_nobody_reads_what_it_says(world: World, streams: str) -> None:
    handoff = provisioned(world, GITHUB)
    reader, writer = os.pipe()
    os.close(reader)
    out = writer if streams in {"stdout", "both"} else subprocess.DEVNULL
    err = writer if streams in {"stderr", "both"} else subprocess.DEVNULL
    try:
        with start(world, "revoke", handoff, "--json", stdout=out, stderr=err) as process:
            process.wait(timeout=30)
    finally:
        os.close(writer)
    assert process.returncode == (0 if streams == "stderr" else 128 + signal.SIGPIPE)
    assert world.live_minted() == ()
    assert run(world, ["list", "--json"]).stdout == "[]\n"
