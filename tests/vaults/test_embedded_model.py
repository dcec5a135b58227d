"""The embedded vault against a dict: any sequence of folders, secrets, reopenings and second handles agrees with it."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import AlreadyExists, SecretNotFound, VaultForbidden
from agent_token_injector.names import VaultPath
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.requirements import requirement

# Few names, near one another: what goes wrong does so between neighbours.
PATHS = st.lists(st.sampled_from(["a", "a-2", "a_2", "a0", "A"]), max_size=3).map(
    lambda segments: VaultPath("/" + "/".join(segments))
)
NAMES = st.sampled_from(["A", "A_B", "AB", "Z9"])
VALUES = st.text(st.characters(codec="utf-8"), max_size=40)


class VaultAgainstDict(RuleBasedStateMachine):
    """`model` maps each folder to its secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name) / "vault"
        self.model: dict[VaultPath, dict[str, str]] = {VaultPath("/"): {}}
        self.handles: list[EmbeddedVault] = []

    def open(self) -> EmbeddedVault:
        return EmbeddedVault(self.directory, clock=ManualClock(datetime(2026, 6, 20, tzinfo=UTC)))

    @property
    def vault(self) -> EmbeddedVault:
        """Either handle, in turn: nothing may depend on which one is asked."""
        self.handles.reverse()
        return self.handles[0]

    @initialize()
    def start(self) -> None:
        self.handles = [self.open(), self.open()]

    def teardown(self) -> None:
        for handle in self.handles:
            handle.close()
        self.temporary.cleanup()

    @rule()
    def reopen(self) -> None:
        self.handles.pop().close()
        self.handles.append(self.open())

    @rule(path=PATHS)
    def create_folder(self, path: VaultPath) -> None:
        if path in self.model:
            with pytest.raises(AlreadyExists):
                self.vault.create_folder(path)
            return
        self.vault.create_folder(path)
        while path not in self.model:
            self.model[path] = {}
            path = path.parent

    @rule(path=PATHS)
    def delete_folder(self, path: VaultPath) -> None:
        if path == VaultPath("/"):
            with pytest.raises(VaultForbidden):
                self.vault.delete_folder(path)
            return
        assert self.vault.delete_folder(path) is (path in self.model)
        self.model = {kept: values for kept, values in self.model.items() if not kept.is_within(path)}

    @rule(path=PATHS, name=NAMES, value=VALUES)
    def create_secret(self, path: VaultPath, name: str, value: str) -> None:
        expected = SecretNotFound if path not in self.model else AlreadyExists if name in self.model[path] else None
        if expected is not None:
            with pytest.raises(expected):
                self.vault.create_secret(path, name, SecretStr(value))
            return
        self.vault.create_secret(path, name, SecretStr(value))
        self.model[path][name] = value

    @rule(path=PATHS, name=NAMES)
    def delete_secret(self, path: VaultPath, name: str) -> None:
        assert self.vault.delete_secret(path, name) is (self.model.get(path, {}).pop(name, None) is not None)

    @rule(path=PATHS, name=NAMES)
    def read_secret(self, path: VaultPath, name: str) -> None:
        expected = self.model.get(path, {}).get(name)
        if expected is None:
            with pytest.raises(SecretNotFound):
                self.vault.read_secret(path, name)
        else:
            assert self.vault.read_secret(path, name).get_secret_value() == expected

    @rule(path=PATHS)
    def list_folders(self, path: VaultPath) -> None:
        expected = sorted(one.segments[-1] for one in self.model if one.segments and one.parent == path)
        assert list(self.vault.list_folders(path)) == expected
        assert self.vault.folder_exists(path) is (path in self.model)

    @rule(path=PATHS)
    def read_missing_folder(self, path: VaultPath) -> None:
        if path not in self.model:
            with pytest.raises(SecretNotFound):
                self.vault.read_folder(path)

    @invariant()
    def every_folder_holds_what_the_model_holds(self) -> None:
        if self.handles:
            for path, values in self.model.items():
                read = self.vault.read_folder(path)
                assert {name: value.get_secret_value() for name, value in read.items()} == values


TestVaultAgainstDict = requirement("vault.model", "D1.one-store")(VaultAgainstDict.TestCase)
TestVaultAgainstDict.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
