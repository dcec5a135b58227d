"""What every launcher promises, and the environment that an agent on this machine starts with (D7).

A launcher is a callable: it takes a SessionContext, starts the agent, and returns a RunningAgent. A launcher of ours
supervises what it starts; a callable of a caller's own need not.

The environment is put together here from nothing: the constant base below, a folder made for this one run, and the
context's own block. No variable is ever copied from this process, but TERM, and that only when it is a plain token.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.launchers.tree_removal import remove_tree
from agent_token_injector.names import check_env_name
from agent_token_injector.session_context import SessionContext

BASE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENV: Final = MappingProxyType(
    {
        "PATH": BASE_PATH,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
)
"""The same for every agent on every machine. The two for git keep a host's credential helper out of reach."""
RUN_FOLDERS: Final = MappingProxyType(
    {
        "HOME": "home",
        "TMPDIR": "tmp",
        "XDG_CONFIG_HOME": "home/.config",
        "XDG_CACHE_HOME": "home/.cache",
        "XDG_DATA_HOME": "home/.local/share",
        "XDG_STATE_HOME": "home/.local/state",
    }
)
"""Variables that name a fresh folder, 0700, below the folder of the run."""
RUN_ID: Final = "HANDOFF_RUN_ID"
"""Marks every process of one run, so that those a killed supervisor leaves behind can be found. Not a secret."""
MCP_CONFIG: Final = "HANDOFF_MCP_CONFIG"
OWN_NAMES: Final = frozenset({*BASE_ENV, *RUN_FOLDERS, RUN_ID, MCP_CONFIG, "TERM"})
"""The variables that a launcher sets: a context that brings one of them is refused."""

_TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,39}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a run ended, as it was seen and not as it was hoped."""

    reason: str
    """What `stop` was given, when that ended it; else `exited`, `expired`, `signalled` or `supervisor-died`."""
    exit_code: int | None
    """The agent's exit status, or minus the signal that ended it; None when the supervisor died before it could tell."""
    survivors: int
    """Processes of the agent that are still there. 0, or something is wrong and `not_done` says what."""
    milliseconds: int
    """From the request to stop, or the event that ended the run, until the last process was seen dead."""
    not_done: tuple[str, ...] = ()
    """What could not be done or not be known, a sentence each."""

    @property
    def clean(self) -> bool:
        """Whether no process survived and nothing was left undone."""
        return self.survivors == 0 and not self.not_done

    def to_dict(self) -> dict[str, Any]:
        """The report as a receipt or `--json` prints it."""
        return {
            "reason": self.reason,
            "exit_code": self.exit_code,
            "survivors": self.survivors,
            "milliseconds": self.milliseconds,
            "not_done": list(self.not_done),
        }


class RunningAgent(Protocol):
    """An agent that was started. Every method may be called from any thread."""

    @property
    def pid(self) -> int:
        """The agent's main process."""
        ...

    def poll(self) -> int | None:
        """The exit code once the run is over, which means: no process of it is left. None until then."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the run is over and return the exit code. Raises TimeoutError after `timeout` seconds."""
        ...

    def stop(self, reason: str) -> StopReport:
        """End every process of the run, and say how that went. A run that is over keeps its first report."""
        ...


class Launcher(Protocol):
    """Starts one agent. Raises SpawnRefused when it cannot; nothing is left running then."""

    def __call__(self, context: SessionContext, /) -> RunningAgent: ...


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The one folder of a run, 0700, with its HOME and TMPDIR in it. It is removed when the run is over."""

    path: Path
    identity: tuple[int, int]
    """Its st_dev and st_ino: what is in its place later is removed only when it is the same folder."""

    @classmethod
    def make(cls) -> Self:
        """Make one. Raises SpawnRefused when the file system does not allow it; nothing is left then."""
        try:
            with ExitStack() as undo:
                path = Path(tempfile.mkdtemp(prefix="handoff-")).resolve()
                status = path.stat()
                made = cls(path, (status.st_dev, status.st_ino))
                undo.callback(made.remove)
                path.chmod(0o700)
                for relative in RUN_FOLDERS.values():
                    made._make_folder(relative)
                undo.pop_all()
                return made
        except OSError as error:
            raise SpawnRefused(
                "the agent has no folder to live in",
                cause=error.strerror,
                hint="make sure that the temporary folder is writable and has room",
            ) from None

    def write(self, relative: str, document: Any) -> Path:
        """Write a JSON document (0600) below a folder of the run, and return its path."""
        path = self.path / relative
        self._make_folder(str(Path(relative).parent))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o600)
            json.dump(document, file, default=_plain)
        return path

    def remove(self) -> str | None:
        """Remove all of it, whatever is in there. Returns why that was not possible, or None."""
        return remove_tree(str(self.path), self.identity)

    def _make_folder(self, relative: str) -> None:
        path = self.path
        for part in Path(relative).parts:
            path /= part
            path.mkdir(mode=0o700, exist_ok=True)
            # mkdir's mode is cut by the umask of a host that we know nothing of.
            path.chmod(0o700)


def agent_environment(context: SessionContext, folder: RunFolder, run_id: str) -> dict[str, str]:
    """The whole environment of an agent on this machine, secrets in the clear, and the files that it points to.

    Raises SpawnRefused for a variable that is the launcher's to set, that no environment can hold, or whose name is
    not one. The text names the variable, never its value.
    """
    block = context.reveal_env()
    for name, value in block.items():
        if name in OWN_NAMES:
            raise SpawnRefused(
                f"the variable {name} of the handoff {context.handoff} is not its to set",
                cause="the launcher sets it itself, the same for every agent",
                hint=f"remove {name} from `env` in the spec",
            )
        if "\0" in value:
            raise SpawnRefused(
                f"the variable {name} of the handoff {context.handoff} cannot be set", cause="its value has a NUL in it"
            )
        try:
            check_env_name(name)
        except ValueError as error:
            raise SpawnRefused("a variable of the handoff cannot be set", cause=str(error)) from None
    term = os.environ.get("TERM", "")
    env = {
        **BASE_ENV,
        **{name: str(folder.path / relative) for name, relative in RUN_FOLDERS.items()},
        "TERM": term if _TERM.fullmatch(term) else "dumb",
        RUN_ID: run_id,
        **block,
    }
    if context.mcp_config is not None:
        env[MCP_CONFIG] = str(folder.write("home/.config/handoff/mcp.json", context.mcp_config))
    return env


def new_run_id() -> str:
    """A fresh, unguessable mark for one run."""
    return secrets.token_hex(16)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a client's MCP configuration holds a {type(value).__name__}, which JSON does not have")
