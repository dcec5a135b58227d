"""The vault contract: every rule of `vaults/base.py`, held against every implementation.

To add an implementation, write an `Opener` for it and put it into `OPENERS`; no test changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import AlreadyExists, SecretNotFound, VaultError, VaultForbidden
from agent_token_injector.names import SecretGlob, VaultPath
from agent_token_injector.vaults import MAX_TOKEN_TTL, IdentityCredentials, Vault, VaultSession
from agent_token_injector.vaults.base import Guard
from tests.requirements import requirement

START = datetime(2026, 6, 20, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DEADLINE = 60.0
NAME = "infisical-handoff-founders-checkout-20260620"
HANDOFF = VaultPath("/MooseQuest/handoffs/founders-checkout-20260620")
TOKEN = "GH_HANDOFF_TOKEN"


@dataclass(frozen=True)
class VaultUnderTest:
    """A fresh vault, another handle on the same store, and the clock that its expiries go by."""

    vault: Vault
    open_again: Callable[[], Vault]
    advance: Callable[[timedelta], None]
    now: Callable[[], datetime]


Opener = Callable[[Path, ExitStack], VaultUnderTest]


def open_embedded(directory: Path, stack: ExitStack) -> VaultUnderTest:
    from agent_token_injector.vaults.embedded import EmbeddedVault

    clock = ManualClock(START)

    def open_again() -> Vault:
        return stack.enter_context(closing(EmbeddedVault(directory / "vault", clock=clock)))

    return VaultUnderTest(open_again(), open_again, clock.advance, clock.now)


OPENERS = [pytest.param(open_embedded, id="embedded")]


@pytest.fixture(params=OPENERS)
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VaultUnderTest]:
    opener: Opener = request.param
    with ExitStack() as stack:
        yield opener(tmp_path, stack)


@pytest.fixture
def vault(under_test: VaultUnderTest) -> Vault:
    return under_test.vault


def mint(
    under_test: VaultUnderTest, *globs: str, ttl: timedelta = MAX_TOKEN_TTL, lives: timedelta = timedelta(hours=24)
) -> IdentityCredentials:
    return under_test.vault.create_identity(
        NAME,
        read=[SecretGlob.parse(text) for text in globs or (f"{HANDOFF}/*",)],
        token_ttl=ttl,
        expires_at=under_test.now() + lives,
    )


def log_in(vault: Vault, credentials: IdentityCredentials) -> VaultSession:
    return vault.login(credentials.client_id, credentials.client_secret)


def put(vault: Vault, path: VaultPath, **values: str) -> None:
    if not vault.folder_exists(path):
        vault.create_folder(path)
    for name, value in values.items():
        vault.create_secret(path, name, SecretStr(value))


def told(error: VaultError) -> tuple[object, ...]:
    """Everything an error shows to whoever caught it."""
    return type(error), str(error), error.to_dict(), error.diagnostics(), repr(error)


def forbidden(session: VaultSession, path: VaultPath, name: str) -> tuple[object, ...]:
    with pytest.raises(VaultForbidden) as refused:
        session.read_secret(path, name)
    return told(refused.value)


class TestFolders:
    @requirement("vault.folders")
    def test_creating_a_folder_creates_its_parents(self, vault: Vault) -> None:
        vault.create_folder(HANDOFF)
        assert vault.folder_exists(HANDOFF)
        assert vault.folder_exists(HANDOFF.parent)
        assert vault.list_folders(VaultPath("/MooseQuest")) == ("handoffs",)

    @requirement("vault.folders")
    def test_creating_a_folder_twice_is_already_exists(self, vault: Vault) -> None:
        vault.create_folder(HANDOFF)
        for path in (HANDOFF, HANDOFF.parent):
            with pytest.raises(AlreadyExists):
                vault.create_folder(path)

    @requirement("vault.folders")
    def test_the_root_is_always_there_and_cannot_be_created_or_deleted(self, vault: Vault) -> None:
        root = VaultPath("/")
        assert vault.folder_exists(root)
        with pytest.raises(AlreadyExists):
            vault.create_folder(root)
        put(vault, HANDOFF, A="1")
        with pytest.raises(VaultError):
            vault.delete_folder(root)
        assert vault.read_secret(HANDOFF, "A").get_secret_value() == "1"

    @requirement("vault.folders")
    def test_folders_are_listed_sorted_one_level_deep_and_a_missing_one_is_empty(self, vault: Vault) -> None:
        for path in ("/x/b", "/x/a/deep", "/x/B", "/x-2/c", "/X/other"):
            vault.create_folder(VaultPath(path))
        assert vault.list_folders(VaultPath("/x")) == ("B", "a", "b")
        assert vault.list_folders(VaultPath("/x/b")) == ()
        assert vault.list_folders(VaultPath("/nowhere")) == ()

    @requirement("vault.folders")
    def test_an_absent_folder_does_not_exist_and_its_neighbours_spelling_is_another_folder(self, vault: Vault) -> None:
        vault.create_folder(VaultPath("/x"))
        for other in ("/X", "/x-2", "/x/x", "/y"):
            assert not vault.folder_exists(VaultPath(other))

    @requirement("vault.folders", "H2.revoke-removes-secrets")
    def test_deleting_a_folder_takes_all_below_it_and_nothing_beside_it(self, vault: Vault) -> None:
        beside = [VaultPath(text) for text in ("/x-2", "/x_2", "/x0", "/xx", "/X", "/y/x")]
        for path in (VaultPath("/x"), VaultPath("/x/below"), VaultPath("/x/below/deep"), *beside):
            put(vault, path, A="1", B="2")
        assert vault.delete_folder(VaultPath("/x")) is True
        for gone in ("/x", "/x/below", "/x/below/deep"):
            assert not vault.folder_exists(VaultPath(gone))
            with pytest.raises(SecretNotFound):
                vault.read_secret(VaultPath(gone), "A")
        for path in beside:
            assert set(vault.read_folder(path)) == {"A", "B"}

    @requirement("vault.absent-is-success")
    def test_deleting_a_missing_folder_is_no_error(self, vault: Vault) -> None:
        assert vault.delete_folder(HANDOFF) is False

    @requirement("vault.folders")
    def test_a_folder_made_again_is_empty(self, vault: Vault) -> None:
        put(vault, HANDOFF, A="old")
        vault.delete_folder(HANDOFF)
        vault.create_folder(HANDOFF)
        assert dict(vault.read_folder(HANDOFF)) == {}


class TestSecrets:
    @requirement("vault.secrets")
    @pytest.mark.parametrize("value", ["s3cret", "", "line\nbreak\x00nul", "žluťoučký 🐴", "a" * 20_000])
    def test_a_secret_reads_back_exactly(self, vault: Vault, value: str) -> None:
        put(vault, HANDOFF, A=value)
        assert vault.read_secret(HANDOFF, "A").get_secret_value() == value
        assert vault.read_folder(HANDOFF)["A"].get_secret_value() == value

    @requirement("vault.folders")
    def test_a_secret_is_not_written_into_a_missing_folder(self, vault: Vault) -> None:
        with pytest.raises(SecretNotFound):
            vault.create_secret(HANDOFF, "A", SecretStr("1"))
        assert not vault.folder_exists(HANDOFF)

    @requirement("D2.create-only")
    def test_a_secret_is_created_and_never_overwritten(self, vault: Vault) -> None:
        put(vault, HANDOFF, A="first")
        with pytest.raises(AlreadyExists) as refused:
            vault.create_secret(HANDOFF, "A", SecretStr("second-value"))
        assert vault.read_secret(HANDOFF, "A").get_secret_value() == "first"
        assert "second-value" not in repr(told(refused.value))

    @requirement("D2.create-only")
    def test_of_many_concurrent_creators_exactly_one_succeeds(self, under_test: VaultUnderTest) -> None:
        vault, other = under_test.vault, under_test.open_again()
        vault.create_folder(HANDOFF)
        together = threading.Barrier(8)

        def create(number: int) -> int | None:
            together.wait(DEADLINE)
            try:
                (vault, other)[number % 2].create_secret(HANDOFF, "PROVISION_INTENT", SecretStr(f"by-{number}"))
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [one for one in pool.map(create, range(8), timeout=DEADLINE) if one is not None]
        assert len(winners) == 1
        assert vault.read_secret(HANDOFF, "PROVISION_INTENT").get_secret_value() == f"by-{winners[0]}"

    @requirement("vault.secrets")
    def test_an_absent_secret_is_not_found_in_a_folder_and_without_one(self, vault: Vault) -> None:
        vault.create_folder(HANDOFF)
        for path in (HANDOFF, VaultPath("/nowhere")):
            with pytest.raises(SecretNotFound):
                vault.read_secret(path, "A")
        with pytest.raises(SecretNotFound):
            vault.read_folder(VaultPath("/nowhere"))

    @requirement("vault.secrets")
    def test_a_folder_is_read_without_those_below_or_beside_it(self, vault: Vault) -> None:
        put(vault, VaultPath("/x"), A="1", B_2="2")
        put(vault, VaultPath("/x/below"), C="3")
        put(vault, VaultPath("/x-2"), D="4")
        read = vault.read_folder(VaultPath("/x"))
        assert {name: value.get_secret_value() for name, value in read.items()} == {"A": "1", "B_2": "2"}

    @requirement("vault.absent-is-success", "H2.revoke-removes-secrets")
    def test_a_deleted_secret_is_gone_and_deleting_it_again_is_no_error(self, vault: Vault) -> None:
        put(vault, HANDOFF, A="1", B="2")
        assert vault.delete_secret(HANDOFF, "A") is True
        assert vault.delete_secret(HANDOFF, "A") is False
        assert vault.delete_secret(VaultPath("/nowhere"), "A") is False
        assert set(vault.read_folder(HANDOFF)) == {"B"}
        put(vault, HANDOFF, A="again")
        assert vault.read_secret(HANDOFF, "A").get_secret_value() == "again"

    @requirement("D1.one-store")
    def test_what_one_handle_writes_another_reads_at_once(self, under_test: VaultUnderTest) -> None:
        other = under_test.open_again()
        put(under_test.vault, HANDOFF, A="1")
        assert other.read_secret(HANDOFF, "A").get_secret_value() == "1"
        other.delete_folder(HANDOFF)
        assert not under_test.vault.folder_exists(HANDOFF)

    @requirement("vault.snapshot")
    def test_a_folder_is_read_as_of_one_instant(self, under_test: VaultUnderTest) -> None:
        # The writer makes A before B and deletes the folder whole, so that B without A is never an instant's truth.
        reader, writer = under_test.open_again(), under_test.vault
        done = threading.Event()

        def write() -> None:
            try:
                for _ in range(25):
                    put(writer, HANDOFF, A="1", B="2")
                    writer.delete_folder(HANDOFF)
            finally:
                done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not done.is_set():
                try:
                    assert set(reader.read_folder(HANDOFF)) in (set(), {"A"}, {"A", "B"})
                except SecretNotFound:
                    continue
            writing.result(DEADLINE)


class TestGuards:
    @requirement("vault.guards")
    def test_a_guarded_write_happens_only_in_the_folder_that_was_meant(self, vault: Vault) -> None:
        vault.create_folder(HANDOFF)
        vault.create_secret(HANDOFF, "INTENT", SecretStr("one"))
        meant, other = Guard("INTENT", SecretStr("one")), Guard("INTENT", SecretStr("two"))
        with pytest.raises(SecretNotFound):
            vault.create_secret(HANDOFF, TOKEN, SecretStr("v"), only_if=other)
        assert set(vault.read_folder(HANDOFF)) == {"INTENT"}
        vault.create_secret(HANDOFF, TOKEN, SecretStr("v"), only_if=meant)
        assert vault.delete_folder(HANDOFF, only_if=other) is False
        assert vault.folder_exists(HANDOFF)
        assert vault.delete_folder(HANDOFF, only_if=meant) is True

    @requirement("vault.guards")
    def test_a_guard_on_absence_holds_while_the_secret_is_absent(self, vault: Vault) -> None:
        vault.create_folder(HANDOFF)
        absent = Guard("INTENT", None)
        vault.create_secret(HANDOFF, TOKEN, SecretStr("v"), only_if=absent)
        vault.create_secret(HANDOFF, "INTENT", SecretStr("one"))
        assert vault.delete_folder(HANDOFF, only_if=absent) is False
        assert vault.folder_exists(HANDOFF)

    @requirement("vault.guards")
    def test_a_guard_holds_nowhere_where_there_is_no_folder(self, vault: Vault) -> None:
        assert vault.delete_folder(HANDOFF, only_if=Guard("INTENT", SecretStr("one"))) is False


class TestIdentities:
    @requirement("vault.identity-read-back")
    def test_an_identity_reads_back_as_it_was_asked_for(self, under_test: VaultUnderTest) -> None:
        globs = (f"{HANDOFF}/*", "/MooseQuest/queue/staging/STRIPE_*")
        made = mint(under_test, *globs, ttl=5 * MINUTE, lives=timedelta(hours=4))
        (found,) = under_test.open_again().find_identities(NAME)
        assert (found.id, found.name, found.client_id) == (made.identity_id, NAME, made.client_id)
        assert sorted(str(glob) for glob in found.read) == sorted(globs)
        assert found.token_ttl == 5 * MINUTE
        assert found.expires_at == under_test.now() + timedelta(hours=4)

    @requirement("vault.identity-read-back")
    def test_identities_are_found_by_their_exact_name_and_names_are_not_unique(
        self, under_test: VaultUnderTest
    ) -> None:
        first, second = mint(under_test), mint(under_test)
        found = under_test.vault.find_identities(NAME)
        assert {one.id for one in found} == {first.identity_id, second.identity_id}
        for other in (NAME[:-1], NAME + "0", NAME.upper(), NAME.replace("-", "_"), "%", "*"):
            assert under_test.vault.find_identities(other) == ()

    @requirement("vault.identity-read-back")
    def test_an_expired_identity_is_still_found_so_that_it_can_be_swept(self, under_test: VaultUnderTest) -> None:
        made = mint(under_test, lives=MINUTE)
        under_test.advance(2 * MINUTE)
        assert [one.id for one in under_test.vault.find_identities(NAME)] == [made.identity_id]

    @requirement("H3.token-ttl")
    def test_a_token_ttl_above_fifteen_minutes_and_an_empty_read_are_refused(self, under_test: VaultUnderTest) -> None:
        with pytest.raises(ValueError, match="15"):
            mint(under_test, ttl=MAX_TOKEN_TTL + timedelta(seconds=1))
        with pytest.raises(ValueError):
            under_test.vault.create_identity(
                NAME, read=[], token_ttl=MAX_TOKEN_TTL, expires_at=under_test.now() + MINUTE
            )
        assert under_test.vault.find_identities(NAME) == ()

    @requirement("vault.absent-is-success")
    def test_deleting_an_identity_twice_is_no_error(self, under_test: VaultUnderTest) -> None:
        made = mint(under_test)
        assert under_test.vault.delete_identity(made.identity_id) is True
        assert under_test.vault.delete_identity(made.identity_id) is False
        assert under_test.vault.find_identities(NAME) == ()

    @requirement("D7.no-secret-shown")
    def test_the_client_secret_is_in_no_repr(self, under_test: VaultUnderTest) -> None:
        made = mint(under_test)
        session = log_in(under_test.vault, made)
        (record,) = under_test.vault.find_identities(NAME)
        shown = "".join(repr(one) for one in (made, record, session, under_test.vault))
        assert made.client_secret.get_secret_value() not in shown


class TestLogin:
    @requirement("H2.kill-at-once")
    def test_every_refused_login_looks_alike(self, under_test: VaultUnderTest) -> None:
        vault = under_test.vault
        live, deleted, expired = mint(under_test), mint(under_test), mint(under_test, lives=MINUTE)
        vault.delete_identity(deleted.identity_id)
        under_test.advance(2 * MINUTE)
        seen = []
        for client_id, client_secret in (
            (live.client_id, SecretStr("wrong")),
            (live.client_id, SecretStr("")),
            (live.client_id, deleted.client_secret),
            (deleted.client_id, deleted.client_secret),
            (expired.client_id, expired.client_secret),
            ("00000000-0000-4000-8000-000000000000", live.client_secret),
            ("", live.client_secret),
            ("žádný", SecretStr("žádné")),
        ):
            with pytest.raises(VaultForbidden) as refused:
                vault.login(client_id, client_secret)
            seen.append(told(refused.value))
        assert all(one == seen[0] for one in seen)
        assert live.client_secret.get_secret_value() not in repr(seen)

    @requirement("H3.token-ttl")
    def test_a_token_lives_its_ttl_and_no_longer(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="1")
        session = log_in(under_test.vault, mint(under_test, ttl=5 * MINUTE))
        assert session.expires_at <= under_test.now() + 5 * MINUTE
        under_test.advance(4 * MINUTE)
        assert session.read_secret(HANDOFF, "A").get_secret_value() == "1"
        under_test.advance(MINUTE)
        forbidden(session, HANDOFF, "A")

    @requirement("H3.token-ttl")
    def test_a_token_lives_at_most_fifteen_minutes(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="1")
        session = log_in(under_test.vault, mint(under_test))
        assert session.expires_at - under_test.now() <= timedelta(minutes=15)
        under_test.advance(15 * MINUTE)
        forbidden(session, HANDOFF, "A")

    @requirement("H3.token-not-past-identity")
    def test_a_token_never_outlives_its_identity(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="1")
        made = mint(under_test, lives=20 * MINUTE)
        under_test.advance(10 * MINUTE)
        session = log_in(under_test.vault, made)
        assert session.expires_at - under_test.now() <= 10 * MINUTE
        under_test.advance(10 * MINUTE)
        forbidden(session, HANDOFF, "A")
        with pytest.raises(VaultForbidden):
            log_in(under_test.vault, made)

    @requirement("H3.token-ttl")
    def test_a_new_login_after_the_first_token_died_reads_again(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="1")
        made = mint(under_test)
        old = log_in(under_test.vault, made)
        under_test.advance(16 * MINUTE)
        new = log_in(under_test.vault, made)
        assert new.read_secret(HANDOFF, "A").get_secret_value() == "1"
        forbidden(old, HANDOFF, "A")

    @requirement("H2.kill-at-once")
    def test_deleting_an_identity_kills_its_tokens_and_its_client_secret_at_once(
        self, under_test: VaultUnderTest
    ) -> None:
        put(under_test.vault, HANDOFF, A="1")
        made, untouched = mint(under_test), mint(under_test)
        sessions = [log_in(under_test.vault, made), log_in(under_test.open_again(), made)]
        survivor = log_in(under_test.vault, untouched)
        for session in sessions:
            session.read_secret(HANDOFF, "A")
        assert under_test.open_again().delete_identity(made.identity_id) is True
        for session in sessions:
            forbidden(session, HANDOFF, "A")
        with pytest.raises(VaultForbidden):
            log_in(under_test.vault, made)
        assert survivor.read_secret(HANDOFF, "A").get_secret_value() == "1"


class TestReading:
    @requirement("H3.scope")
    @pytest.mark.parametrize(
        ("glob", "path", "name", "covered"),
        [
            ("/x/*", "/x", "A", True),
            ("/x/*", "/x-2", "A", False),
            ("/x/*", "/X", "A", False),
            ("/x/*", "/x/below", "A", False),
            ("/x/*", "/", "A", False),
            ("/x/below/*", "/x", "A", False),
            ("/x/STRIPE_*", "/x", "STRIPE_KEY", True),
            ("/x/STRIPE_*", "/x", "STRIPE_", True),
            ("/x/STRIPE_*", "/x", "STRIPE", False),
            ("/x/STRIPE_*", "/x", "STRIPEXKEY", False),
            ("/x/STRIPE_*", "/x", "MY_STRIPE_KEY", False),
            ("/x/STRIPE_*", "/x/below", "STRIPE_KEY", False),
            ("/x/STRIPE_KEY", "/x", "STRIPE_KEY", True),
            ("/x/STRIPE_KEY", "/x", "STRIPE_KEY_2", False),
            ("/x/STRIPE_KEY", "/x", "STRIPE_KE", False),
        ],
    )
    def test_an_identity_reads_what_its_globs_cover_and_nothing_else(
        self, under_test: VaultUnderTest, glob: str, path: str, name: str, *, covered: bool
    ) -> None:
        folder = VaultPath(path)
        put(under_test.vault, folder, **{name: "value"})
        session = log_in(under_test.vault, mint(under_test, glob))
        if covered:
            assert session.read_secret(folder, name).get_secret_value() == "value"
        else:
            forbidden(session, folder, name)

    @requirement("H3.scope")
    def test_several_globs_cover_their_union(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, VaultPath("/x"), A="1", B="2")
        put(under_test.vault, VaultPath("/y"), A="3", B="4")
        session = log_in(under_test.vault, mint(under_test, "/x/A", "/y/*"))
        assert session.read_secret(VaultPath("/x"), "A").get_secret_value() == "1"
        assert session.read_secret(VaultPath("/y"), "B").get_secret_value() == "4"
        forbidden(session, VaultPath("/x"), "B")

    @requirement("H3.no-existence-oracle")
    def test_outside_the_globs_missing_and_existing_are_the_same_refusal(self, under_test: VaultUnderTest) -> None:
        elsewhere = VaultPath("/elsewhere")
        session = log_in(under_test.vault, mint(under_test))
        no_folder = forbidden(session, elsewhere, "A")
        under_test.vault.create_folder(elsewhere)
        no_secret = forbidden(session, elsewhere, "A")
        put(under_test.vault, elsewhere, A="1")
        a_secret = forbidden(session, elsewhere, "A")
        assert no_folder == no_secret == a_secret

    @requirement("H3.scope")
    def test_inside_the_globs_an_absent_secret_is_not_found(self, under_test: VaultUnderTest) -> None:
        session = log_in(under_test.vault, mint(under_test))
        under_test.vault.create_folder(HANDOFF)
        with pytest.raises(SecretNotFound):
            session.read_secret(HANDOFF, "A")

    @requirement("H3.scope", "vault.read-only")
    def test_a_session_has_no_way_to_list_or_write(self, under_test: VaultUnderTest) -> None:
        session = log_in(under_test.vault, mint(under_test))
        assert isinstance(session, VaultSession)
        assert {name for name in dir(session) if not name.startswith("_")} == {"expires_at", "read_secret"}

    @requirement("H2.kill-at-once")
    def test_a_secret_deleted_through_another_handle_is_gone_for_a_live_session(
        self, under_test: VaultUnderTest
    ) -> None:
        put(under_test.vault, HANDOFF, A="1")
        session = log_in(under_test.vault, mint(under_test))
        assert session.read_secret(HANDOFF, "A").get_secret_value() == "1"
        under_test.open_again().delete_folder(HANDOFF)
        with pytest.raises(SecretNotFound):
            session.read_secret(HANDOFF, "A")


class TestAccessEvents:
    @requirement("H5.vault-access")
    def test_logins_and_reads_allowed_and_refused_leave_events_in_order(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, **{TOKEN: "1"})
        made = mint(under_test)
        with pytest.raises(VaultForbidden):
            under_test.vault.login(made.client_id, SecretStr("wrong"))
        under_test.advance(MINUTE)
        session = log_in(under_test.vault, made)
        under_test.advance(MINUTE)
        session.read_secret(HANDOFF, TOKEN)
        forbidden(session, VaultPath("/elsewhere"), "A")
        under_test.advance(MAX_TOKEN_TTL)
        forbidden(session, HANDOFF, TOKEN)

        events = under_test.open_again().access_events(NAME)
        assert [(one.action, one.path, one.name, one.allowed) for one in events] == [
            ("login", "", "", False),
            ("login", "", "", True),
            ("read", str(HANDOFF), TOKEN, True),
            ("read", "/elsewhere", "A", False),
            ("read", str(HANDOFF), TOKEN, False),
        ]
        assert {(one.identity_id, one.identity_name) for one in events} == {(made.identity_id, NAME)}
        assert [(one.at - events[0].at) // MINUTE for one in events] == [0, 1, 2, 2, 17]
        assert events[0].at.utcoffset() == timedelta(0)

    @requirement("H5.vault-access")
    def test_events_outlive_the_identity_and_tell_of_its_tokens_last_tries(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="1")
        made = mint(under_test)
        session = log_in(under_test.vault, made)
        session.read_secret(HANDOFF, "A")
        under_test.vault.delete_identity(made.identity_id)
        under_test.vault.delete_folder(HANDOFF)
        forbidden(session, HANDOFF, "A")
        events = under_test.vault.access_events(NAME)
        assert [(one.action, one.allowed) for one in events] == [("login", True), ("read", True), ("read", False)]

    @requirement("H5.vault-access")
    def test_events_are_found_by_the_identitys_exact_name(self, under_test: VaultUnderTest) -> None:
        log_in(under_test.vault, mint(under_test))
        assert len(under_test.vault.access_events(NAME)) == 1
        assert under_test.vault.access_events(NAME + "0") == ()
        assert under_test.vault.access_events("%") == ()

    @requirement("H5.vault-access", "D7.no-secret-shown")
    def test_events_hold_no_value(self, under_test: VaultUnderTest) -> None:
        put(under_test.vault, HANDOFF, A="the-value-itself")
        made = mint(under_test)
        log_in(under_test.vault, made).read_secret(HANDOFF, "A")
        shown = repr(under_test.vault.access_events(NAME))
        assert "the-value-itself" not in shown
        assert made.client_secret.get_secret_value() not in shown


@requirement("vault.contract")
def test_the_implementation_is_a_vault_and_closes_twice(under_test: VaultUnderTest) -> None:
    other = under_test.open_again()
    assert isinstance(other, Vault)
    other.close()
    other.close()
    assert not under_test.vault.folder_exists(HANDOFF)
