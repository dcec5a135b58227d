"""No secret of a run is in any file, log, output, error or command line of it, however spelt (H6)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, ProvisionFailed, SecretsMismatch
from agent_token_injector.launchers.process import ProcessLauncher
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.names import is_record
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.sandbox.http_server import Reply
from agent_token_injector.session_context import SessionContext
from agent_token_injector.spawn import spawn_handoff
from tests.flow.needles import Needles, spellings
from tests.flow.rig import PATH, REVOKE_TOKEN, events
from tests.requirements import requirement
from tests.world import World, make_world

STAGING = "value-of-stripe_webhook_secret"
FOREIGN = "value-of-production_key"
GOOD = {"owner": "raxx", "repo": "TradeMasterAPI", "base": "main", "head": "handoff/founders-checkout", "title": "T"}
PLAN = [
    {"tool": "github_pr_create", "arguments": GOOD},
    {"tool": "github_pr_create", "arguments": {**GOOD, "owner": "someone-else"}},
    {"tool": "merge_pull_request", "arguments": {"owner": "raxx", "repo": "TradeMasterAPI", "pull_number": 1}},
    {
        "tool": "infisical_get_secret",
        "arguments": {"path": "/MooseQuest/queue/staging", "name": "STRIPE_WEBHOOK_SECRET"},
    },
    {"tool": "infisical_get_secret", "arguments": {"path": "/MooseQuest/velvet", "name": "PRODUCTION_KEY"}},
    {"tool": "infisical_get_secret", "arguments": {"name": "GH_HANDOFF_TOKEN"}},
    {"tool": "stripe_charge", "arguments": {}},
]
HANDED_BY_A_TOOL = {"staging secret", "GH_HANDOFF_TOKEN"}
"""What the agent may ask for, and gets: it is in what the agent itself prints, and nowhere else."""
OWN_FILES = {
    "vendors/sandbox-github-app.pem": {"app key"},
    "state/keys/provisioner.key": {"signing seed"},
    "too-wide.key": {"too wide key"},
    "operator.key": {"Stripe key"},
}
"""Files that are there to hold a secret: the operator's own, which only their owner can read."""


def allowed(needles: Needles, **more: set[str]) -> dict[str, set[str]]:
    owned = {
        where: {name for name in needles.values if name.startswith(tuple(own))} for where, own in OWN_FILES.items()
    }
    return {**owned, **more}


def prepare(needles: Needles, world: World) -> None:
    needles.add("staging secret", STAGING)
    needles.add("foreign secret", FOREIGN)
    needles.add_key("app key", world.sandbox.github.private_key.get_secret_value())
    world.sandbox.github.repositories["raxx/trademasterapi"].branches["handoff/founders-checkout"] = {"x": ""}


def add_run(needles: Needles, ctx: HandoffContext, manifest: ProvisionManifest) -> None:
    for name, value in ctx.vault.read_folder(ctx.path_of(manifest.handoff)).items():
        if not is_record(name) and name != "INFISICAL_CLIENT_ID":
            needles.add(name, value.get_secret_value())
    assert ctx.signer is not None
    seed = ctx.signer().seed()
    needles.add("signing seed", seed)
    needles.add("signing seed, as it is stored", seed.hex())


def told(needles: Needles, error: BaseException) -> None:
    """Everything that an error, its causes and its frames' positions could show."""
    while error is not None:
        needles.look_at("errors", f"{error!r} {error} {error.__dict__!r}")
        if isinstance(error, HandoffError):
            needles.look_at("errors", error.diagnostics() + json.dumps(error.to_dict()))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


@requirement("H6.no-values")
def test_a_whole_run_through_the_api_leaves_no_secret_anywhere(
    world: World,
    ctx: HandoffContext,
    clock: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needles = Needles()
    prepare(needles, world)
    runs = world.home / "runs"
    runs.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(runs))
    with needles.log_records(), needles.command_lines():
        _refused_provisionings(needles, world, ctx)
        manifest = provision(world.spec, ctx, supplied={"stripe": world.stripe_key()})
        add_run(needles, ctx, manifest)
        needles.look_at("reprs", repr((manifest, ctx)))
        _run_agent(needles, world, ctx)
        _refused_dispatch(needles, ctx)
        hook = world.sandbox.github.hook(REVOKE_TOKEN, before=lambda _: Reply(500, {"message": "Server Error"}))
        needles.look_at("receipts", json.dumps(revoke(manifest.handoff_id, ctx).to_dict()))
        hook.remove()
        needles.look_through(world.home)
        world.delete_stripe_keys()
        receipt = revoke(manifest.handoff_id, ctx)
        needles.look_at("receipts", json.dumps(receipt.to_dict()))
    assert receipt.ok, receipt.residue
    needles.look_through(world.home)
    needles.look_at("output", "".join(capfd.readouterr()))
    needles.look_at("audit", repr(events(ctx)))
    assert len(needles.seen["log records"]) > 20
    assert len(needles.seen["command lines"]) > 5
    assert {"too wide key", "bearer", "GH_HANDOFF_TOKEN", "STRIPE_RESTRICTED_KEY"} <= set(needles.values)
    assert needles.found(allowed(needles, agent=HANDED_BY_A_TOOL)) == []
    assert needles.found(allowed(needles)), "the agent was handed what it asked for"


def _refused_provisionings(needles: Needles, world: World, ctx: HandoffContext) -> None:
    wide = world.stripe_key("charge_write")
    needles.add("too wide key", wide.get_secret_value())
    wrong = "sk_test_51" + "Ab9" * 30
    needles.add("secret key", wrong)
    for key in (wide, SecretStr(wrong)):
        with pytest.raises(ProvisionFailed) as caught:
            provision(world.spec, ctx, supplied={"stripe": key})
        told(needles, caught.value)
    # Stripe's own words quote the account and the key's tail.
    hook = world.sandbox.stripe.hook(
        lambda _: True,
        before=lambda request: Reply(500, {"error": {"message": f"key {request.bearer()} is confused"}}),
    )
    with pytest.raises(ProvisionFailed) as caught:
        provision(world.spec, ctx, supplied={"stripe": wide})
    told(needles, caught.value)
    hook.remove()
    # A vendor that quotes the token back in its refusal.
    hook = world.sandbox.github.hook(
        lambda request: request.path.endswith("/branches/main"),
        before=lambda request: _quoting(needles, request.bearer()),
    )
    with pytest.raises(ProvisionFailed) as caught:
        provision(world.spec, ctx, supplied={"stripe": wide})
    told(needles, caught.value)
    hook.remove()


def _quoting(needles: Needles, token: str | None) -> Reply:
    assert token is not None
    needles.add("a token that was quoted back", token)
    return Reply(403, {"message": f"{token} may not, nor may {base64.b64encode(token.encode()).decode()}"})


def _run_agent(needles: Needles, world: World, ctx: HandoffContext) -> None:
    argv = [sys.executable, "-m", "agent_token_injector.sandbox.demo_agent", json.dumps(PLAN)]
    launcher = ProcessLauncher(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, clock=world.clock)

    def catching(context: SessionContext) -> Any:
        needles.add("bearer", context.reveal_env()["HANDOFF_MCP_TOKEN"])
        needles.look_at("reprs", repr(context) + json.dumps(context.masked()))
        running = launcher(context)
        needles.look_through(world.home)
        return running

    with spawn_handoff(str(world.spec.handoff_id(world.clock.now())), catching, ctx=ctx) as handoff:
        with handoff.result.stdout as out, handoff.result.stderr as err:
            printed = out.read()
            needles.look_at("the agent's errors", err.read())
        assert handoff.wait(timeout=60) == 0
        needles.look_at("agent", printed)
        needles.look_at("reprs", repr(handoff.__dict__))
    outcomes = [event["outcome"] for event in map(json.loads, printed.splitlines()) if event["event"] == "call"]
    assert outcomes[0] == outcomes[3] == "ok", outcomes
    assert not {outcomes[number] for number in (1, 2, 4, 6)} & {"ok"}, outcomes


def _refused_dispatch(needles: Needles, ctx: HandoffContext) -> None:
    smuggled = "rk_live_" + "smuggledbysomeone" * 3
    needles.add("smuggled key", smuggled)
    ctx.vault.create_secret(PATH, "SMUGGLED", SecretStr(smuggled))
    with pytest.raises(SecretsMismatch) as caught:
        spawn_handoff(PATH.segments[-1], lambda _: None, ctx=ctx)
    told(needles, caught.value)
    ctx.vault.delete_secret(PATH, "SMUGGLED")


CATCH = (
    "import os, sys, pathlib\n"
    "pathlib.Path(sys.argv[1]).write_text(os.environ['HANDOFF_MCP_TOKEN'])\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'agent_token_injector.sandbox.demo_agent', sys.argv[2]])"
)


@requirement("H6.no-values")
def test_a_whole_run_through_the_commands_leaves_no_secret_anywhere(tmp_path: Path) -> None:
    home, caught, needles = tmp_path / "home", tmp_path / "caught", Needles()
    home.mkdir()
    with make_world(home) as world, needles.command_lines():
        prepare(needles, world)
        with world.open() as ctx:
            world.furnish(ctx)

        def cli(*argv: str, code: int, where: str = "commands", **more: str) -> str:
            done = world.cli(*argv, TMPDIR=str(home), **more)
            assert done.returncode == code, (argv, done.returncode, done.stderr)
            needles.look_at(where, done.stdout + done.stderr)
            return done.stdout.strip()

        spec = str(world.write_spec())
        wide, key = world.stripe_key("charge_write"), world.stripe_key()
        for name, value in (("too-wide.key", wide), ("operator.key", key)):
            (home / name).write_text(value.get_secret_value())
            (home / name).chmod(0o600)
        needles.add("too wide key", wide.get_secret_value())
        needles.add("Stripe key", key.get_secret_value())

        cli("provision", spec, "--supply", "stripe=too-wide.key", "--json", code=4)
        cli("supply", spec, "--surface", "stripe", "--json", code=0, stdin=key.get_secret_value() + "\n")
        handoff = cli("provision", spec, "--supply", "stripe=operator.key", code=0)
        with world.open() as ctx:
            add_run(needles, ctx, ProvisionManifest.from_secret(ctx.vault.read_secret(ctx.layout.handoffs.child(handoff), "PROVISION_MANIFEST")))  # fmt: skip
        cli("show", handoff, code=0)
        cli("show", handoff, "--json", code=0)
        cli("list", "--json", code=0)
        cli("audit", "verify", handoff, code=0)
        agent = [sys.executable, "-c", CATCH, str(caught), json.dumps(PLAN)]
        cli("spawn", handoff, "--", *agent, code=0, where="agent")
        needles.add("bearer", caught.read_text())
        cli("spawn", "never-was-20260620", "--", "true", code=6)
        needles.look_through(home)
        cli("revoke", handoff, "--json", code=5)
        world.delete_stripe_keys()
        cli("revoke", handoff, "--json", code=0)
        cli("audit", "show", handoff, "--json", code=0)
        needles.look_through(home)
    assert {"Stripe key", "bearer", "GH_HANDOFF_TOKEN", "INFISICAL_CLIENT_SECRET"} <= set(needles.values)
    operators = {"Stripe key", "STRIPE_RESTRICTED_KEY"}
    permitted = allowed(needles, agent=HANDED_BY_A_TOOL, **{"operator.key": operators})
    assert needles.found(permitted) == []


@requirement("H6.no-values")
@pytest.mark.parametrize("spelling", list(spellings(b"x" * 16)))
@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_the_search_finds_a_needle_that_was_planted(tmp_path: Path, spelling: str, before: str) -> None:
    secret = "ghs_Planted~needle/with+signs?and=more"
    needles = Needles()
    needles.add("planted", secret)
    text = {
        "base64": base64.b64encode(f"{before}{secret} and more".encode()),
        "base64url": base64.urlsafe_b64encode(f"{before}{secret} and more".encode()),
    }.get(spelling.partition("+")[0], before.encode() + spellings(secret.encode())[spelling] + b" and more")
    (tmp_path / "file").write_bytes(b"a log line\n" + text + b"\n")
    needles.look_through(tmp_path)
    assert needles.found()
    assert needles.found({"file": {"planted"}}) == []
