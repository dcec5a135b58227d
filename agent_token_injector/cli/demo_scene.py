"""The scenes of `handoff demo`: each does the real thing through the public face, shows it, and records what it saw."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from agent_token_injector.audit import ChainHead, Decision
from agent_token_injector.cli.terminal import hang
from agent_token_injector.clock import SystemClock, human_duration
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import AlreadyExists, ManifestMissing, ProvisionFailed, ScopeTooWide, SpecError
from agent_token_injector.gate import check
from agent_token_injector.launchers.process import ProcessLauncher
from agent_token_injector.lease import describe_limit
from agent_token_injector.leftovers import SurfaceOutcome
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.masking import MASK
from agent_token_injector.mcp_proxy.servers import resolve_command
from agent_token_injector.names import SecretGlob, VaultPath
from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.sandbox import Sandbox
from agent_token_injector.sandbox.github import SandboxGitHub
from agent_token_injector.session_context import admit, build_session_context
from agent_token_injector.settings import Settings
from agent_token_injector.spawn import spawn_handoff
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.surfaces.stripe_permissions import wanted

STAND_IN: Final = ("-m", "agent_token_injector.sandbox.github_mcp_server")
FOREIGN_PATH: Final = "/MooseQuest/velvet"


@dataclass
class Stage:
    """The demo's world: a sandbox of vendors, a context over it, a console, and the record of what was seen."""

    spec: HandoffSpec
    sandbox: Sandbox
    ctx: HandoffContext
    console: Console
    stripe_key: SecretStr | None = field(repr=False)
    began: float = field(default_factory=time.monotonic)
    record: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    step: int = 0
    shown: set[str] = field(default_factory=set)
    minted: set[str] = field(default_factory=set)
    refused: int = 0

    @classmethod
    def build(cls, spec: HandoffSpec, home: Path, stack: ExitStack, *, quiet: bool) -> Self:
        """Start the emulated vendors and open a context that points at them, all in `home`."""
        clock = SystemClock()
        sandbox = Sandbox(home / "vendors", clock=clock)
        if spec.surfaces.github is not None:
            owner, _, name = spec.surfaces.github.repository.partition("/")
            sandbox.github = SandboxGitHub(clock, owner=owner, repositories=[name])
        stack.enter_context(sandbox)
        environment = {
            "HANDOFF_STATE_DIR": str(home / "state"),
            "HANDOFF_CONFIG_DIR": str(home / "config"),
            **sandbox.environment(),
        }
        ctx = stack.enter_context(HandoffContext.from_settings(Settings.load(environment), clock=clock))
        missing = sorted(set(spec.surfaces.requested()) - set(ctx.surfaces))
        if missing:
            raise SpecError(
                f"the demo cannot show {', '.join(missing)}",
                cause=f"this version provisions {', '.join(ctx.surfaces)}",
                hint="`handoff check` judges such a spec; `handoff demo` without a spec shows one that runs",
            )
        played = _with_stand_ins(spec, sandbox)
        for server in played.mcp_servers.values():
            if server.command:
                resolve_command(server.command[0])
        key = None
        if spec.surfaces.stripe is not None:
            key = sandbox.operator_stripe_key(wanted(spec.surfaces.stripe.permissions).asked)
        console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        stage = cls(played, sandbox, ctx, console, key)
        stage.open()
        return stage

    def open(self) -> None:
        """Say what this is, and furnish the vault with what the spec reads and with what it must not."""
        self.console.print(f"[bold]handoff demo[/]: {self.spec.task_slug}, card {escape(self.spec.card)}")
        hang(
            self.console,
            "",
            "The vendors are emulated on loopback and enforce scopes, expiry and revocation. "
            "The vault, the MCP proxy, the MCP server and the agent are real.",
            style="dim",
        )
        for text in self.spec.surfaces.infisical.read:
            glob = SecretGlob.parse(text)
            self._furnish(glob.folder, glob.pattern.replace("*", "WEBHOOK_SECRET"))
        self._furnish(VaultPath(FOREIGN_PATH), "PRODUCTION_KEY")
        # The branch that the agent would have pushed: the demo shows its tools, not its git.
        for repository in self.sandbox.github.repositories.values():
            repository.branches[f"handoff/{self.spec.task_slug}"] = {"checkout.py": ""}

    def _furnish(self, folder: VaultPath, name: str) -> None:
        if folder.is_within(self.ctx.layout.handoffs):
            return  # Its own path is made when it is provisioned.
        if not self.ctx.vault.folder_exists(folder):
            self.ctx.vault.create_folder(folder)
        with suppress(AlreadyExists):
            self.ctx.vault.create_secret(folder, name, SecretStr(f"demo-value-of-{name.lower()}"))

    # -- scenes ----------------------------------------------------------------------------------------------------

    def gate(self) -> bool:
        self._title("The gate: every box of the ADR's §6.2 checklist")
        report = check(self.spec, self.ctx.policy, self.ctx.clock.now(), layout=self.ctx.layout)
        from agent_token_injector.cli.check_ import print_report

        print_report(report, self.console)
        self.record["gate"] = report.to_dict()
        return report.ok

    def refuse_dispatch_without_manifest(self) -> None:
        self._title("Dispatch before provisioning: refused")
        launches: list[object] = []
        handoff = str(self.spec.handoff_id(self.ctx.clock.now()))
        try:
            spawn_handoff(handoff, launches.append, ctx=self.ctx)
        except ManifestMissing as error:
            self._no(f"{error}; {len(launches)} launches")
        self._expect("dispatch without a manifest is refused", not launches)

    def provision(self) -> ProvisionManifest:
        self._title("Step 0: mint, store, read back, sign")
        if self.stripe_key is not None:
            self._aside("Stripe has no API to mint a key: the operator makes one in the (emulated) Dashboard")
            self._show_too_wide_key()
        supplied = {} if self.stripe_key is None else {"stripe": self.stripe_key}
        manifest = provision(self.spec, self.ctx, supplied=supplied, progress=self._progress)
        self.record["handoff_id"] = manifest.handoff_id
        now = self.ctx.clock.now()
        limit = describe_limit(manifest.expires_at, manifest.requested_until, manifest.limited_by, now)
        hang(self.console, "  ", f"[bold]{manifest.handoff_id}[/] {escape(limit)}")
        return manifest

    def _show_too_wide_key(self) -> None:
        """An operator's mistake: a key that can also refund. It is caught by asking Stripe, and everything is undone."""
        assert self.spec.surfaces.stripe is not None  # noqa: S101 - there is a key
        asked = wanted(self.spec.surfaces.stripe.permissions).asked
        wide = self.sandbox.operator_stripe_key([*asked, "charge_write"])
        try:
            provision(self.spec, self.ctx, supplied={"stripe": wide})
        except ProvisionFailed as error:
            if not isinstance(error.__cause__, ScopeTooWide):
                raise
            self._no(f"a key that could also refund: {error.__cause__.what}; everything minted so far is undone")
            self._expect("nothing is left of the refused provisioning", not self.sandbox.github.live_credentials())
        else:
            self._expect("a key that is too wide is refused", False)
        self.sandbox.stripe.dashboard_delete_key(wide)

    def _progress(self, step: str, surface: str, detail: Mapping[str, Any]) -> None:
        if step == "minted":
            lease = detail["lease"]
            self.minted.add(lease.identity)
            self._ok(f"[bold]{surface}[/] {lease.identity} ({lease.kind}, {_left(lease, self.ctx)})")
            for key, value in lease.scope.items():
                if value:
                    hang(self.console, f"      {key.replace('_', ' ')}: ", escape(_plain(value)), style="dim")

    def verify(self, manifest: ProvisionManifest) -> None:
        self._title("The manifest, and what the agent will be given")
        admitted = admit(manifest.handoff, self.ctx)
        self._ok(f"signature of key {manifest.key_id}, spec digest and {len(manifest.secrets)} secrets are as signed")
        for name, value in build_session_context(admitted, self.ctx).masked()["env"].items():
            style = "yellow" if value == MASK else "dim"
            hang(self.console, f"      {name}=", f"[{style}]{escape(value)}[/]")

    def run_agent(self, manifest: ProvisionManifest) -> None:
        self._title("The agent: a real process, through the MCP proxy")
        plan = _plan(self.spec, self.ctx, manifest)
        argv = [
            sys.executable,
            "-m",
            "agent_token_injector.sandbox.demo_agent",
            json.dumps([call["call"] for call in plan]),
        ]
        launcher = ProcessLauncher(argv, stdout=subprocess.PIPE)
        with spawn_handoff(manifest.handoff_id, launcher, ctx=self.ctx) as handoff:
            seen = [json.loads(line) for line in handoff.result.stdout]
            code = handoff.wait(timeout=60)
        listed: list[str] = next((event["names"] for event in seen if event["event"] == "tools"), [])
        hang(self.console, "  it sees ", f"[bold]{escape(', '.join(listed))}[/] and nothing else")
        granted = sorted(grant.name for grant in self.spec.mcp_tools)
        self._expect("the agent sees exactly the allowlist", sorted(listed) == granted and code == 0)
        calls = [event for event in seen if event["event"] == "call"]
        self._expect("the agent made every call", len(calls) == len(plan))
        for expected, event in zip(plan, calls, strict=False):
            allowed = event["outcome"] == "ok"
            self._expect(expected["say"], allowed == expected["allowed"])
            text = _answer(event["text"]) if expected["show"] or not allowed else ""
            (self._ok if allowed else self._no)(escape(expected["say"]))
            if text:
                hang(self.console, "      ", escape(text), style="dim")
        self.record["calls"] = calls
        receipt = handoff.stop()
        if receipt.agent is not None:
            took, left = receipt.agent.milliseconds, receipt.agent.survivors
            self._aside(f"it ended with exit code {code}; {left} of its processes are left, after {took} ms")
            self._expect("no process of the agent is left", left == 0)

    def audit(self, manifest: ProvisionManifest) -> None:
        self._title("The audit trail")
        head = ChainHead(seq=manifest.audit_head.seq, digest=manifest.audit_head.digest)
        for event in self.ctx.audit.events(manifest.handoff):
            if event.action.startswith(("tool.", "vault.")):
                style = "red" if event.decision is Decision.REFUSED else "green"
                target = " ".join(part for part in (event.target, event.reason and f"({event.reason})") if part)
                hang(
                    self.console,
                    f"  {event.seq:>3} [{style}]{event.decision:<7}[/] {event.action:<12} ",
                    escape(target),
                )
        result = self.ctx.audit.verify(manifest.handoff, checkpoints=[head])
        self._expect("the audit trail is whole", result.ok)
        self._ok(f"{result.events} events, hash-chained, none altered, removed, reordered or cut off")
        self.record["audit"] = {"ok": result.ok, "events": result.events}

    def kill_switch(self, manifest: ProvisionManifest) -> None:
        self._title("The kill-switch")
        if self.stripe_key is not None:
            early = revoke(manifest.handoff_id, self.ctx, reason="demo", progress=self._outcome)
            self._expect("a key that only a person can delete is reported, not hidden", not early.ok)
            self._aside("the operator deletes the key in the (emulated) Dashboard, and revokes again")
            self.sandbox.stripe.dashboard_delete_key(self.stripe_key)
        receipt = revoke(manifest.handoff_id, self.ctx, reason="demo", progress=self._outcome)
        self._expect("everything is proven dead", receipt.ok and receipt.path_deleted)
        self.record["receipt"] = receipt.to_dict()

    def _outcome(self, outcome: SurfaceOutcome) -> None:
        if outcome.surface in self.shown:
            return
        if outcome.residue is None:
            self.shown.add(outcome.surface)
        if outcome.residue is None and outcome.proof is not None:
            self._ok(f"[bold]{outcome.surface}[/] dead in {outcome.milliseconds:.0f} ms: {escape(outcome.proof.how)}")
        elif outcome.residue is not None:
            hang(
                self.console,
                "  [yellow]…[/] ",
                f"[bold]{outcome.surface}[/] still alive: {escape(outcome.residue.why)}",
            )

    def nothing_left(self, manifest: ProvisionManifest) -> None:
        alive = [*self.sandbox.github.live_credentials(), *self.sandbox.stripe.live_credentials()]
        folders = self.ctx.vault.list_folders(self.ctx.layout.handoffs)
        self._expect("no residue: no live credential, no vault path", not alive and not folders)
        try:
            spawn_handoff(manifest.handoff_id, lambda _: None, ctx=self.ctx)
        except ManifestMissing:
            self._no("dispatching it again: there is no such handoff any more")
        else:
            self._expect("a revoked handoff cannot be dispatched", False)

    def finish(self) -> bool:
        took = time.monotonic() - self.began
        self.record["seconds"] = round(took, 2)
        self.record["failures"] = self.failures
        if self.failures:
            for failure in self.failures:
                self.console.print(f"[bold red]did not hold:[/] {escape(failure)}")
            return False
        told = (
            f"{_count(len(self.minted), 'credential')} given and seen dead, {_count(self.refused, 'attempt')} refused"
        )
        self.console.print(f"\n[bold green]No residue.[/] {told}, in {took:.1f} s.")
        self.console.print("Next: `handoff init`, then `handoff check`.", style="dim")
        return True

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self.step += 1
        self.console.print(f"\n[bold cyan]{self.step}. {escape(text)}[/]")

    def _ok(self, markup: str) -> None:
        hang(self.console, "  [green]✓[/] ", markup)

    def _no(self, markup: str) -> None:
        self.refused += 1
        hang(self.console, "  [red]✗ refused[/] ", markup)

    def _aside(self, text: str) -> None:
        hang(self.console, "  ", escape(text), style="dim")

    def _expect(self, what: str, held: bool) -> None:
        if not held:
            self.failures.append(what)


def _with_stand_ins(spec: HandoffSpec, sandbox: Sandbox) -> HandoffSpec:
    """The spec with the sandbox's small GitHub MCP server in the place of github-mcp-server, and nothing else changed."""
    document = spec.to_dict()
    for server in document["mcp_servers"].values():
        if server["command"] and Path(server["command"][0]).name == "github-mcp-server":
            server["command"] = [sys.executable, *STAND_IN]
            server["plain_env"]["GITHUB_API_URL"] = sandbox.github.url
    return HandoffSpec.parse(json.dumps(document))


def _plan(spec: HandoffSpec, ctx: HandoffContext, manifest: ProvisionManifest) -> list[dict[str, Any]]:
    """What the agent tries: for each kind of grant one call that is allowed, and one for each way past it."""
    plan: list[dict[str, Any]] = []

    def add(say: str, tool: str, arguments: dict[str, Any], *, allowed: bool, show: bool = True) -> None:
        plan.append({"say": say, "allowed": allowed, "show": show, "call": {"tool": tool, "arguments": arguments}})

    github = next((grant for grant in spec.mcp_tools if grant.tool == "create_pull_request"), None)
    if github is not None and spec.surfaces.github is not None:
        owner, _, repo = spec.surfaces.github.repository.partition("/")
        good = {"owner": owner, "repo": repo, "base": "main", "head": f"handoff/{spec.task_slug}", "title": "Checkout"}
        add(f"{github.name} into main of its own repository", github.name, good, allowed=True)
        other = {**good, "owner": "someone-else"}
        add(f"{github.name} in another owner's repository", github.name, other, allowed=False)
        merge = {"owner": owner, "repo": repo, "pull_number": 1}
        add("merge_pull_request, which is not on the list", "merge_pull_request", merge, allowed=False)
    vault = next((name for name, server in spec.mcp_servers.items() if server.builtin == "vault"), None)
    reader = next((grant.name for grant in spec.mcp_tools if vault and grant.name == f"{vault}_get_secret"), None)
    if reader is not None:
        reads = spec.surfaces.infisical.read
        inside = SecretGlob.parse(reads[0]) if reads else ctx.layout.own_glob(manifest.handoff)
        name = inside.pattern.replace("*", "WEBHOOK_SECRET") if reads else "INFISICAL_CLIENT_ID"
        good = {"path": str(inside.folder), "name": name}
        add(f"{reader} {inside.folder}/{name}", reader, good, allowed=True, show=False)
        bad = {"path": FOREIGN_PATH, "name": "PRODUCTION_KEY"}
        add(f"{reader} {FOREIGN_PATH}/PRODUCTION_KEY, outside its own", reader, bad, allowed=False)
    for name in spec.mcp_tools_excluded[:1]:
        add(f"{name}, which is excluded", name, {}, allowed=False)
    return plan


def _left(lease: Any, ctx: HandoffContext) -> str:
    if lease.expires_at is None:
        return "no expiry of its own"
    return f"lives {human_duration(lease.expires_at - ctx.clock.now())}"


def _plain(value: Any) -> str:
    """A scope's value as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(inner) for inner in value)
    return str(value)


def _answer(text: str) -> str:
    """What a tool answered, on one line and in short."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        text = ", ".join(f"{key}: {document[key]}" for key in ("number", "state", "title") if key in document) or text
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
