"""Every command does what its help says, and says it in JSON when it is asked to."""

from __future__ import annotations

import json
import stat

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import ExitCode
from agent_token_injector.manifest import MANIFEST_TYPE
from agent_token_injector.names import HandoffId
from tests.cli.support import ADR_COMMAND, GITHUB, LIVE_STRIPE, MINIMAL, audit_file, provisioned, run, write
from tests.requirements import requirement
from tests.world import World


@requirement("cli.init")
def test_init_writes_a_spec_that_passes_the_gate_and_never_overwrites_one(world: World) -> None:
    made = run(world, ["init", "new.json", "--task-slug", "my-task", "--repository", "raxx/TradeMasterAPI"])
    assert (made.returncode, made.stdout) == (0, "new.json\n")
    assert run(world, ["check", "new.json"]).returncode == 0
    before = (world.home / "new.json").read_bytes()
    assert run(world, ["init", "new.json"]).returncode == ExitCode.USAGE
    assert (world.home / "new.json").read_bytes() == before


@requirement("cli.init", "cli.json")
def test_init_with_json_prints_the_spec_that_it_wrote(world: World) -> None:
    made = run(world, ["init", "--json"])
    assert json.loads(made.stdout)["spec"] == json.loads((world.home / "handoff-spec.json").read_text())


@requirement("cli.check")
def test_check_prints_every_box_of_the_adrs_checklist_with_its_mark(world: World) -> None:
    done = run(world, ["check", world.write_spec().name])
    assert done.returncode == 0
    boxes = (
        "Infisical: per-handoff read-only identity",
        "GitHub: ",
        "Cloud/CI creds: task-specific, test/sandbox by default",
        "MCP tools: explicit allowlist defined",
        "session_context / env: only the above scoped credentials injected",
        "Velvet enrollment",
        "Revocation path documented: for each surface, who deletes what and where",
        "Audit path confirmed",
        "Task slug: founders-checkout",
        "Expected runtime: ",
        "Handoff expires at (UTC): ",
        "Operator who approved: operator@example.com",
        "Linked card: #3206",
    )
    lines = done.stdout.splitlines()
    places = [next(at for at, line in enumerate(lines) if line.startswith(f"[x] {box}")) for box in boxes]
    assert places == sorted(places)
    assert lines.index("Surface checklist:") < places[0] < lines.index("Task context:") < places[8]
    assert lines[-1].endswith("the gate is open")


@requirement("cli.check")
def test_check_marks_a_box_that_does_not_apply_and_one_that_refuses(world: World) -> None:
    assert "[-] GitHub: " in run(world, ["check", write(world, "a.json", MINIMAL)]).stdout
    refused = run(world, ["check", write(world, "b.json", {**MINIMAL, "card": "", "expires_in": "PT48H"})])
    assert refused.returncode == ExitCode.GATE_REFUSED
    assert "[ ] Linked card: " in refused.stdout
    assert "mend: " in refused.stdout
    assert refused.stdout.splitlines()[-1].endswith("the gate refuses this handoff")


@requirement("cli.check", "cli.json")
def test_check_with_json_gives_the_report_open_or_refused(world: World) -> None:
    done = run(world, ["check", write(world, "a.json", MINIMAL), "--json"])
    assert json.loads(done.stdout)["ok"] is True
    refused = run(world, ["check", write(world, "b.json", {**MINIMAL, "card": ""}), "--json"])
    assert refused.returncode == ExitCode.GATE_REFUSED
    report = json.loads(refused.stdout)
    assert report["ok"] is False
    assert [finding["code"] for finding in report["findings"] if finding["severity"] == "refuse"] == ["H5.card"]


@requirement("cli.check")
def test_check_with_schema_prints_the_json_schema_of_a_spec(world: World) -> None:
    schema = json.loads(run(world, ["check", "--schema"]).stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(MINIMAL) <= set(schema["properties"])


@requirement("cli.check")
def test_check_touches_nothing(world: World) -> None:
    spec = write(world, "a.json", MINIMAL)
    run(world, ["check", spec])
    assert not (world.home / "state").exists()
    assert not (world.home / "config").exists()


@requirement("H7.approve", "cli.approve")
def test_a_listed_operators_approval_opens_the_gate_for_live_stripe_until_the_spec_is_edited(world: World) -> None:
    spec = write(world, "live.json", LIVE_STRIPE)
    assert run(world, ["check", spec]).returncode == ExitCode.GATE_REFUSED

    made = run(world, ["approve", spec, "--surface", "stripe", "--mode", "live"])
    assert made.returncode == 0
    key = world.home / "config" / "operator.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "operators.json lists this key" in made.stderr
    assert run(world, ["check", spec]).returncode == ExitCode.GATE_REFUSED

    listing = made.stderr[made.stderr.index("{") :]
    (world.home / "config" / "operators.json").write_text(listing)
    assert run(world, ["check", spec]).returncode == 0
    before = key.read_bytes()
    again = run(world, ["approve", spec, "--surface", "stripe", "--mode", "live", "--json"])
    assert json.loads(again.stdout)["listed"] is True
    assert key.read_bytes() == before

    edited = {**LIVE_STRIPE, "surfaces": {"stripe": {"mode": "live", "permissions": {"subscriptions": "write"}}}}
    write(world, "live.json", edited)
    refused = run(world, ["check", spec])
    assert refused.returncode == ExitCode.GATE_REFUSED
    assert "edited after it was approved" in refused.stdout


@requirement("H7.approve")
def test_what_the_spec_does_not_ask_for_cannot_be_approved(world: World) -> None:
    spec = write(world, "test-mode.json", MINIMAL)
    done = run(world, ["approve", spec, "--surface", "stripe", "--mode", "live", "--json"])
    assert done.returncode == ExitCode.USAGE
    assert json.loads(done.stdout)["error"] == "approval.invalid"
    assert not (world.home / "test-mode.approvals.json").exists()


@requirement("cli.supply", "D7.argv")
def test_supply_takes_a_credential_from_stdin_and_replaces_it_only_when_told_to(world: World) -> None:
    spec = world.write_spec().name
    key = world.stripe_key().get_secret_value()
    first = run(world, ["supply", spec, "--surface", "stripe", "--json"], stdin=f"{key}\n")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["stored"].endswith("/STRIPE_RESTRICTED_KEY")
    second = run(world, ["supply", spec, "--surface", "stripe"], stdin=f"{key}\n")
    assert second.returncode == ExitCode.FAILED_CLEAN
    assert "--replace" in second.stderr
    third = run(world, ["supply", spec, "--surface", "stripe", "--replace"], stdin=f"{key}\n")
    assert third.returncode == 0
    assert run(world, ["provision", spec]).returncode == 0
    for done in (first, second, third):
        assert key not in done.stdout + done.stderr


@requirement("cli.provision")
def test_provision_prints_the_id_and_twice_gives_the_same_handoff(world: World) -> None:
    spec = write(world, "spec.json", GITHUB)
    first = run(world, ["provision", spec])
    assert first.returncode == 0, first.stderr
    second = run(world, ["provision", spec, "--json"])
    manifest = json.loads(second.stdout)
    assert manifest["type"] == MANIFEST_TYPE
    assert manifest["handoff_id"] == first.stdout.strip()
    assert len(world.live_minted()) == 1


@requirement("cli.list", "cli.show", "cli.json")
def test_list_and_show_tell_what_is_there_without_values(world: World) -> None:
    handoff = provisioned(world, GITHUB)
    rows = json.loads(run(world, ["list", "--json"]).stdout)
    assert [(row["handoff_id"], row["state"], row["surfaces"]) for row in rows] == [
        (handoff, "provisioned", ["infisical", "github"])
    ]
    assert run(world, ["list"]).stdout.splitlines()[1].split()[:2] == [handoff, "provisioned"]
    shown = run(world, ["show", handoff])
    assert shown.returncode == 0
    assert "raxx/TradeMasterAPI" in shown.stdout
    assert json.loads(run(world, ["show", handoff, "--json"]).stdout)["handoff_id"] == handoff


@requirement("cli.revoke")
def test_revoke_proves_the_end_and_can_be_repeated(world: World) -> None:
    handoff = provisioned(world, GITHUB)
    done = run(world, ["revoke", handoff, "--json"])
    assert done.returncode == 0
    receipt = json.loads(done.stdout)
    assert receipt["ok"]
    assert {outcome["state"] for outcome in receipt["outcomes"]} == {"dead"}
    assert world.live_minted() == ()
    again = run(world, ["revoke", handoff])
    assert again.returncode == 0
    assert "there is nothing to revoke" in again.stderr


@requirement("cli.revoke", "cli.exit-codes")
def test_revoke_exits_5_and_names_what_ends_it_when_only_a_person_can(world: World) -> None:
    spec = world.write_spec().name
    key = world.stripe_key().get_secret_value()
    handoff = run(world, ["provision", spec, "--supply", "stripe=-"], stdin=f"{key}\n").stdout.strip()
    done = run(world, ["revoke", handoff, "--json"])
    assert done.returncode == ExitCode.RESIDUE
    assert json.loads(done.stdout)["ok"] is False
    assert "Dashboard" in done.stderr
    assert "residue remains on 1 surface" in done.stderr
    world.delete_stripe_keys()
    assert run(world, ["revoke", handoff]).returncode == 0


@requirement("cli.audit", "cli.exit-codes")
def test_audit_verify_finds_one_edited_byte_and_says_at_which_event(world: World) -> None:
    handoff = provisioned(world)
    events = json.loads(run(world, ["audit", "show", handoff, "--json"]).stdout)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert run(world, ["audit", "verify"]).stdout == f"{handoff}: whole, {len(events)} events\n"

    path = audit_file(world, handoff)
    lines = path.read_bytes().splitlines(keepends=True)
    at = lines[2].index(b"mint.requested")
    lines[2] = lines[2][:at] + b"m" + b"u" + lines[2][at + 2 :]
    path.write_bytes(b"".join(lines))
    done = run(world, ["audit", "verify", handoff])
    assert done.returncode == ExitCode.AUDIT_UNAVAILABLE
    assert f"{handoff}: NOT whole at event 3" in done.stdout
    verdict = json.loads(run(world, ["audit", "verify", handoff, "--json"]).stdout)[handoff]
    assert (verdict["ok"], verdict["at_seq"]) == (False, 3)


@requirement("cli.audit")
def test_a_trail_that_was_deleted_does_not_pass_for_whole(world: World) -> None:
    handoff = provisioned(world)
    run(world, ["revoke", handoff])
    audit_file(world, handoff).unlink()
    assert run(world, ["audit", "verify", handoff]).returncode == ExitCode.AUDIT_UNAVAILABLE


@requirement("cli.audit", "H5.tamper-evident")
def test_a_cut_trail_does_not_pass_for_whole_because_its_manifest_was_altered_too(world: World) -> None:
    handoff = provisioned(world)
    path = audit_file(world, handoff)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with world.open() as ctx:
        folder = ctx.layout.of(HandoffId.parse(handoff))
        stored = ctx.vault.read_secret(folder, "PROVISION_MANIFEST").get_secret_value()
        ctx.vault.delete_secret(folder, "PROVISION_MANIFEST")
        altered = stored.replace('"key_id":"', '"key_id":"0')
        ctx.vault.create_secret(folder, "PROVISION_MANIFEST", SecretStr(altered))
    done = run(world, ["audit", "verify", handoff])
    assert done.returncode == ExitCode.AUDIT_UNAVAILABLE
    assert "manifest" in done.stdout


@requirement("cli.adr-command", "H8.kill-switch")
def test_the_adrs_own_command_ends_an_identity_that_outlived_its_path(world: World) -> None:
    handoff = provisioned(world)
    with world.open() as ctx:
        ctx.vault.delete_folder(ctx.layout.of(HandoffId.parse(handoff)))
        assert ctx.vault.find_identities(f"infisical-handoff-{handoff}")
    slug = HandoffId.parse(handoff).slug
    done = run(world, ["--revoke", "--slug", str(slug)], program=ADR_COMMAND)
    assert done.returncode == 0
    assert "infisical: dead" in done.stderr
    with world.open() as ctx:
        assert ctx.vault.find_identities(f"infisical-handoff-{handoff}") == ()


@requirement("cli.adr-command")
def test_the_adrs_own_command_provisions_a_spec_and_revokes_a_task_by_its_slug(world: World) -> None:
    spec = write(world, "spec.json", GITHUB)
    made = run(world, ["--spec", spec], program=ADR_COMMAND)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("one-repository-")
    ended = run(world, ["--revoke", "--slug", "one-repository", "--json"], program=ADR_COMMAND)
    assert ended.returncode == 0
    assert [receipt["ok"] for receipt in json.loads(ended.stdout)] == [True]
    assert world.live_minted() == ()
    nothing = run(world, ["--revoke", "--slug", "one-repository"], program=ADR_COMMAND)
    assert nothing.returncode == 0
    assert "there is nothing to revoke" in nothing.stderr


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--revoke"],
        ["--slug", "a"],
        ["--spec", "spec.json", "--slug", "a"],
        ["--revoke", "--slug", "a", "--spec", "spec.json"],
        ["--revoke", "--slug", "Not A Slug"],
        ["--spec", "missing.json"],
    ],
)
@requirement("cli.adr-command", "cli.exit-codes")
def test_the_adrs_own_command_refuses_what_makes_no_sense(world: World, argv: list[str]) -> None:
    done = run(world, [*argv, "--json"], program=ADR_COMMAND)
    assert done.returncode == ExitCode.USAGE
    assert {"error", "what", "hint"} <= set(json.loads(done.stdout))
    assert done.stderr.startswith("handoff: ")
