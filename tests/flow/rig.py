"""What the tests of the flow share: smaller specs, parts that fail at a chosen call, and what is alive afterwards."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.audit import AuditEvent
from agent_token_injector.context import HandoffContext, SurfaceTable
from agent_token_injector.launchers.process import ProcessLauncher
from agent_token_injector.manifest import ProvisionManifest
from agent_token_injector.names import HandoffId, VaultPath
from agent_token_injector.provisioning import Progress, provision
from agent_token_injector.sandbox.http_server import method
from agent_token_injector.session_context import SessionContext
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.surfaces.infisical import InfisicalSurface
from tests.world import World, eventually

START = datetime(2026, 6, 20, 9, 0, tzinfo=UTC)
HANDOFF = "founders-checkout-20260620"
ID = HandoffId.parse(HANDOFF)
PATH = VaultPath(f"/MooseQuest/handoffs/{HANDOFF}")
MINT = method("POST", r"/app/installations/\d+/access_tokens")
REVOKE_TOKEN = method("DELETE", "/installation/token")
VAULT_TOOL = {"mcp_servers": {"infisical": {"builtin": "vault"}}, "mcp_tools": ["infisical_get_secret"]}


def spec_of(world: World, *surfaces: str, **changes: Any) -> HandoffSpec:
    """The world's spec with only the surfaces named beside the vault's, the vault's tool only, and some changes."""
    document = world.spec.to_dict()
    for name in ("github", "stripe"):
        if name not in surfaces:
            document["surfaces"][name] = None
    return HandoffSpec.parse(json.dumps({**document, **VAULT_TOOL, **changes}))


def vault_only(world: World, **changes: Any) -> HandoffSpec:
    """A spec that needs no vendor: a tenth of a second to provision."""
    return spec_of(world, **changes)


def provisioned(world: World, ctx: HandoffContext, *surfaces: str, **changes: Any) -> ProvisionManifest:
    supplied = {"stripe": world.stripe_key()} if "stripe" in surfaces else {}
    return provision(spec_of(world, *surfaces, **changes), ctx, supplied=supplied)


def alive(world: World, ctx: HandoffContext, handoff: str = HANDOFF) -> set[str]:
    """The surfaces on which something that was minted would still be accepted."""
    found = {"github"} if world.live_minted() else set()
    return found | ({"infisical"} if ctx.vault.find_identities(f"infisical-handoff-{handoff}") else set())


def nothing_left(world: World, ctx: HandoffContext) -> bool:
    """Whether no minted credential is alive, after the seconds that a keeper may take, and no handoff's path is left."""
    return eventually(lambda: not alive(world, ctx)) and ctx.vault.list_folders(ctx.layout.handoffs) == ()


def requests(world: World) -> int:
    """How many requests any vendor has seen."""
    return len(world.sandbox.github.log) + len(world.sandbox.stripe.log)


def events(ctx: HandoffContext, handoff: str = HANDOFF) -> list[AuditEvent]:
    """The handoff's audit trail; none when it was never written."""
    return list(ctx.audit.events(HandoffId.parse(handoff))) if handoff in ctx.audit.handoffs() else []


def actions(ctx: HandoffContext, handoff: str = HANDOFF) -> list[str]:
    return [event.action for event in events(ctx, handoff)]


def at_step(step: str, act: Callable[[], Any], *, surface: str | None = None) -> Progress:
    """A progress callback that acts at the first such step."""
    done = threading.Event()

    def progress(name: str, where: str, _detail: Mapping[str, Any]) -> None:
        if name == step and surface in {None, where} and not done.is_set():
            done.set()
            act()

    return progress


@dataclass
class Failing:
    """Every call of a part in order; one of them, and if `onward` all that follow, fail instead of or after their work."""

    error: Callable[[], Exception]
    at: int = 0
    after: bool = False
    onward: bool = False
    only: frozenset[str] = frozenset()
    names: list[str] = field(default_factory=list)

    def wrap(self, inner: Any) -> Any:
        return Passing(inner, self._call)

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        if self.only and name not in self.only:
            return call()
        self.names.append(name)
        number = len(self.names)
        fails = number == self.at or (self.onward and 0 < self.at < number)
        if fails and not self.after:
            raise self.error()
        result = call()
        if fails:
            raise self.error()
        return result


class Passing:
    """A real part with every method call led past `around(name, call)`."""

    def __init__(self, inner: Any, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._inner, self._around = inner, around

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value
        return lambda *args, **kwargs: self._around(name, lambda: value(*args, **kwargs))


def rewired(ctx: HandoffContext, *, vault: Any = None, audit: Any = None) -> HandoffContext:
    """The context with another vault or audit in the place of its own, for the vault's own surface too."""
    vault, audit = vault or ctx.vault, audit or ctx.audit
    surfaces = SurfaceTable(
        {
            "infisical": lambda: InfisicalSurface(vault, layout=ctx.layout, clock=ctx.clock),
            "github": lambda: ctx.surfaces["github"],
            "stripe": lambda: ctx.surfaces["stripe"],
        }
    )
    return dataclasses.replace(ctx, vault=vault, audit=audit, surfaces=surfaces)


@dataclass
class Recorder:
    """A launcher of a caller's own that starts nothing and keeps what it was given."""

    given: list[SessionContext] = field(default_factory=list)
    result: Any = None

    def __call__(self, context: SessionContext) -> Any:
        self.given.append(context)
        return self.result

    @property
    def launches(self) -> int:
        return len(self.given)


def agent(world: World, code: str, *, stdout: int | None = None, **more: Any) -> ProcessLauncher:
    """A launcher of a Python program, by the world's clock."""
    more = {"grace": timedelta(seconds=0.2), **more}
    return ProcessLauncher([sys.executable, "-I", "-S", "-c", code], stdout=stdout, clock=world.clock, **more)


def replace_secret(ctx: HandoffContext, name: str, change: Callable[[str], str], path: VaultPath = PATH) -> None:
    """Put another value in a secret's place, as only an administrator of the vault can."""
    value = ctx.vault.read_secret(path, name).get_secret_value()
    ctx.vault.delete_secret(path, name)
    ctx.vault.create_secret(path, name, SecretStr(change(value)))


@contextmanager
def threads(*acts: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run all at once, each in a thread; what each returned or raised, in order, once all have ended."""
    results: list[Any] = [None] * len(acts)
    barrier = threading.Barrier(len(acts))

    def run(index: int, act: Callable[[], Any]) -> None:
        barrier.wait(30)
        try:
            results[index] = act()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results[index] = error

    running = [threading.Thread(target=run, args=(index, act)) for index, act in enumerate(acts)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    yield results


def runs(pid: int | str) -> bool:
    """Whether a process runs: one that has ended and waits for init to take notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def names_of(residue: Sequence[Any]) -> set[str]:
    return {item.surface for item in residue}
