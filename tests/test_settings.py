"""Operator configuration: where it is read from, whom it trusts, and what it refuses to read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import SystemClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ExitCode, SettingsError, SignatureInvalid
from agent_token_injector.provisioning import provision
from agent_token_injector.settings import Settings, read_secret_file, read_trusted
from agent_token_injector.signing import SigningKey
from agent_token_injector.spawn import spawn_handoff
from agent_token_injector.spec import HandoffSpec
from tests.requirements import requirement


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def environ(tmp_path: Path, config: Path) -> dict[str, str]:
    return {"HANDOFF_STATE_DIR": str(tmp_path / "state"), "HANDOFF_CONFIG_DIR": str(config)}


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


# -- where values come from --------------------------------------------------------------------------------------------


@requirement("settings.env-file")
def test_what_the_environment_does_not_set_comes_from_the_configuration_directorys_env_file(
    environ: dict[str, str], config: Path
) -> None:
    write(config / ".env", "HANDOFF_AUDIT_DURABILITY=sync\nHANDOFF_VAULT_ROOT=/Other\n")
    settings = Settings.load({**environ, "HANDOFF_VAULT_ROOT": "/Mine"})
    assert (settings.audit_durability, settings.vault_root) == ("sync", "/Mine")


@requirement("settings.env-file")
def test_the_file_that_handoff_env_file_names_is_read_in_its_place(
    environ: dict[str, str], config: Path, tmp_path: Path
) -> None:
    write(config / ".env", "HANDOFF_VAULT_ROOT=/FromTheDirectory\n")
    named = write(tmp_path / "named.env", "HANDOFF_VAULT_ROOT=/FromTheNamedFile\n")
    assert Settings.load({**environ, "HANDOFF_ENV_FILE": str(named)}).vault_root == "/FromTheNamedFile"


@requirement("settings.env-file")
def test_an_env_file_in_the_working_directory_is_never_read(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work" / "below"
    work.mkdir(parents=True)
    for folder in (work, work.parent):
        write(folder / ".env", "HANDOFF_VAULT_ROOT=/FromAnAgent\nHANDOFF_STRIPE_API_URL=https://evil.example\n")
    monkeypatch.chdir(work)
    settings = Settings.load(environ)
    assert (settings.vault_root, settings.stripe_api_url) == ("/MooseQuest", "https://api.stripe.com")


@requirement("settings.env-file")
def test_a_value_in_an_env_file_is_what_it_says_and_reads_no_other_variable(
    environ: dict[str, str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME_OF_SECRETS", "leaked")
    write(config / ".env", "HANDOFF_STRIPE_API_URL=https://${HOME_OF_SECRETS}.example\nPATH=/evil\n")
    before = dict(os.environ)
    assert Settings.load(environ).stripe_api_url == "https://${HOME_OF_SECRETS}.example"
    assert dict(os.environ) == before


@requirement("settings.environment")
def test_an_environment_given_empty_is_empty_and_not_this_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDOFF_VAULT_ROOT", "/FromThisProcess")
    assert Settings.load({}).vault_root == "/MooseQuest"
    assert Settings.load().vault_root == "/FromThisProcess"


@requirement("settings.environment")
def test_every_documented_variable_is_read(environ: dict[str, str], tmp_path: Path) -> None:
    settings = Settings.load(
        {
            **environ,
            "HANDOFF_VAULT": "embedded",
            "HANDOFF_PROVISION_DEADLINE": "PT5M",
            "HANDOFF_AUDIT_DURABILITY": "sync",
            "HANDOFF_GITHUB_API_URL": "https://github.example/api/v3",
            "HANDOFF_GITHUB_APP_CLIENT_ID": "Iv23abc",
            "HANDOFF_GITHUB_INSTALLATION_ID": "42",
            "HANDOFF_GITHUB_PRIVATE_KEY_FILE": str(tmp_path / "app.pem"),
            "HANDOFF_STRIPE_API_URL": "https://stripe.example",
        }
    )
    assert settings.provision_deadline == timedelta(minutes=5)
    assert settings.github is not None
    assert (settings.github.app_client_id, settings.github.installation_id) == ("Iv23abc", 42)
    assert (settings.github.api_url, settings.stripe_api_url) == (
        "https://github.example/api/v3",
        "https://stripe.example",
    )


@requirement("settings.errors-name")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HANDOFF_VAULT", "infisicle"),
        ("HANDOFF_VAULT_ROOT", "/MooseQuest/../other"),
        ("HANDOFF_PROVISION_DEADLINE", "soon"),
        ("HANDOFF_PROVISION_DEADLINE", "PT2H"),
        ("HANDOFF_PROVISION_DEADLINE", "PT0S"),
        ("HANDOFF_AUDIT_DURABILITY", "never"),
        ("HANDOFF_GITHUB_INSTALLATION_ID", "the first one"),
    ],
)
def test_a_value_that_is_wrong_is_refused_by_the_name_of_its_variable(
    environ: dict[str, str], variable: str, value: str
) -> None:
    more = {"HANDOFF_GITHUB_APP_CLIENT_ID": "Iv23", "HANDOFF_GITHUB_PRIVATE_KEY_FILE": "app.pem"}
    more |= {"HANDOFF_GITHUB_INSTALLATION_ID": "1", variable: value}
    with pytest.raises(SettingsError, match=variable) as caught:
        Settings.load({**environ, **more})
    assert caught.value.exit_code is ExitCode.USAGE


@requirement("settings.errors-name")
def test_a_github_configuration_that_is_not_whole_names_what_is_missing(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"HANDOFF_GITHUB_(INSTALLATION_ID|PRIVATE_KEY_FILE)"):
        Settings.load({**environ, "HANDOFF_GITHUB_APP_CLIENT_ID": "Iv23"})


# -- what is not read --------------------------------------------------------------------------------------------------


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


def _a_link(path: Path) -> None:
    real = path.with_name("real")
    path.rename(real)
    path.symlink_to(real)


def _a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def _anothers(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 64_321, -1)


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


SPOILT: list[Callable[[Path], None]] = [
    _open_to_others,
    _a_link,
    _a_link_to_nothing,
    _anothers,
    _a_pipe,
    _a_folder,
]


@requirement("settings.trusted-files")
@pytest.mark.parametrize("spoil", SPOILT, ids=[spoil.__name__.strip("_") for spoil in SPOILT])
@pytest.mark.parametrize("name", [".env", "policy.json", "operators.json", "trusted_provisioners.json"])
def test_a_file_that_others_could_have_written_is_refused_by_its_path(
    environ: dict[str, str], config: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    path = write(config / name, "" if name == ".env" else "[]" if name.startswith("trusted") else "{}")
    spoil(path)
    with pytest.raises(SettingsError, match=str(path)):
        read_all(environ)


@requirement("settings.trusted-directory")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o1777, 0o2775])
def test_a_configuration_directory_that_others_can_write_is_refused_whatever_is_in_it(
    environ: dict[str, str], config: Path, mode: int
) -> None:
    settings = Settings.load(environ)
    config.chmod(mode)
    for ask in (lambda: Settings.load(environ), settings.policy_overrides, settings.operators, settings.trusted_keys):
        with pytest.raises(SettingsError, match="open to others") as caught:
            ask()
        assert (caught.value.path, caught.value.hint) == ("config_dir", f"chmod go-w {config}")


@requirement("settings.trusted-directory")
def test_a_configuration_directory_of_another_user_is_refused(environ: dict[str, str], config: Path) -> None:
    _anothers(config)
    with pytest.raises(SettingsError, match="belongs to another user"):
        Settings.load(environ)


@requirement("settings.trusted-directory")
def test_a_link_to_the_configuration_directory_counts_as_what_it_leads_to(
    environ: dict[str, str], config: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(config)
    write(config / "policy.json", '{"max_lifetime": "PT2H"}')
    linked = {**environ, "HANDOFF_CONFIG_DIR": str(link)}
    assert Settings.load(linked).policy_overrides() == {"max_lifetime": "PT2H"}
    config.chmod(0o777)
    with pytest.raises(SettingsError, match="open to others"):
        Settings.load(linked)
    link.unlink()
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="cannot be looked at"):
        Settings.load(linked)


@requirement("settings.trusted-directory")
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_others_may_look_into_the_configuration_directory(environ: dict[str, str], config: Path, mode: int) -> None:
    write(config / "policy.json", '{"max_lifetime": "PT2H"}')
    config.chmod(mode)
    assert Settings.load(environ).policy_overrides() == {"max_lifetime": "PT2H"}


@requirement("settings.strict-json")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.json", '{"max_lifetime": "PT1H", "max_lifetime": "PT24H"}'),
        ("policy.json", '{"surface_lifetimes": {"aws": "PT15M", "aws": "PT1H"}}'),
        ("operators.json", '{"anna@example.com": [], "anna@example.com": []}'),
    ],
)
def test_a_configuration_file_that_two_parsers_could_read_differently_is_refused(
    environ: dict[str, str], config: Path, name: str, text: str
) -> None:
    write(config / name, text)
    with pytest.raises(SettingsError, match="twice") as caught:
        read_all(environ)
    assert caught.value.path == name
    assert name in caught.value.what


def read_all(environ: dict[str, str]) -> None:
    settings = Settings.load(environ)
    settings.policy_overrides()
    settings.operators()
    settings.trusted_keys()


@requirement("settings.trusted-files")
def test_the_refusal_of_an_open_file_says_how_to_close_it(tmp_path: Path) -> None:
    path = write(tmp_path / "key", "secret", 0o644)
    with pytest.raises(SettingsError) as caught:
        read_secret_file(path)
    assert (caught.value.cause, caught.value.hint) == ("mode 0644", f"chmod go-rwx {path}")
    assert "secret" not in caught.value.diagnostics().replace(str(path), "")


@requirement("settings.trusted-files")
@pytest.mark.parametrize(
    ("mode", "plain", "secret"), [(0o600, True, True), (0o644, True, False), (0o620, False, False)]
)
def test_others_may_read_what_is_no_secret_and_may_write_nothing(
    tmp_path: Path, mode: int, plain: bool, secret: bool
) -> None:
    path = write(tmp_path / "file", "x", mode)
    for allowed, is_secret in ((plain, False), (secret, True)):
        if allowed:
            assert read_trusted(path, secret=is_secret) == b"x"
        else:
            with pytest.raises(SettingsError, match="is open to others"):
                read_trusted(path, secret=is_secret)


@requirement("settings.errors-name")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (name, text)
            for name in ("operators.json", "trusted_provisioners.json")
            for text in ("{", '"text"', '{"a": 1}')
        ),
        *(("policy.json", text) for text in ("{", '"text"', "[1]")),
        ("trusted_provisioners.json", '["not a key"]'),
        ("operators.json", '{"you@example.com": ["not a key"]}'),
    ],
)
def test_a_file_that_does_not_hold_what_it_should_is_refused_by_its_name(
    environ: dict[str, str], config: Path, name: str, text: str
) -> None:
    write(config / name, text)
    with pytest.raises(SettingsError, match=name):
        read_all(environ)


@requirement("settings.errors-name")
def test_an_env_file_that_is_not_text_is_refused_by_its_path(environ: dict[str, str], config: Path) -> None:
    path = config / ".env"
    path.write_bytes(b"HANDOFF_VAULT_ROOT=\xff\xfe\n")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=str(path)):
        Settings.load(environ)


@requirement("settings.env-file")
def test_an_env_file_that_is_named_and_not_there_is_an_error(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.env"):
        Settings.load({**environ, "HANDOFF_ENV_FILE": str(tmp_path / "absent.env")})


def test_the_newline_that_an_editor_leaves_is_not_part_of_a_secret(tmp_path: Path) -> None:
    assert read_secret_file(write(tmp_path / "key", "value\r\n")) == SecretStr("value")


# -- policy and trust --------------------------------------------------------------------------------------------------


@requirement("policy.tighten-only")
def test_policy_json_tightens_what_the_gate_allows(environ: dict[str, str], config: Path) -> None:
    write(config / "policy.json", json.dumps({"max_lifetime": "PT2H", "protected_branches": ["main", "master", "staging", "production", "release"]}))  # fmt: skip
    with HandoffContext.from_settings(Settings.load(environ)) as ctx:
        assert ctx.policy.max_lifetime == timedelta(hours=2)
        assert "release" in ctx.policy.protected_branches


@requirement("policy.tighten-only")
@pytest.mark.parametrize("document", [{"max_lifetime": "PT25H"}, {"protected_branches": ["main"]}, {"no_such": 1}])
def test_policy_json_that_would_loosen_anything_opens_no_context(
    environ: dict[str, str], config: Path, document: dict[str, object]
) -> None:
    write(config / "policy.json", json.dumps(document))
    with pytest.raises(SettingsError, match=next(iter(document))):
        HandoffContext.from_settings(Settings.load(environ))


@requirement("H7.operators")
def test_operators_json_says_who_may_approve(environ: dict[str, str], config: Path) -> None:
    key = str(SigningKey.generate().public)
    write(config / "operators.json", json.dumps({"you@example.com": [key]}))
    with HandoffContext.from_settings(Settings.load(environ)) as ctx:
        assert ctx.policy.operators == {"you@example.com": (key,)}


VAULT_ONLY = {
    "task_slug": "small",
    "card": "#1",
    "operator": "you@example.com",
    "expected_runtime": "PT10M",
    "expires_in": "PT30M",
    "mcp_servers": {"infisical": {"builtin": "vault"}},
    "mcp_tools": ["infisical_get_secret"],
}


@requirement("D6.trust")
@pytest.mark.parametrize("trusted", [[], [str(SigningKey.generate().public)]], ids=["nobody", "another"])
def test_a_host_that_does_not_trust_the_provisioner_refuses_its_manifest(
    environ: dict[str, str], config: Path, trusted: list[str]
) -> None:
    settings = Settings.load(environ)
    with HandoffContext.from_settings(settings, clock=SystemClock()) as ctx:
        manifest = provision(HandoffSpec.parse(json.dumps(VAULT_ONLY)), ctx)
    write(config / "trusted_provisioners.json", json.dumps(trusted))
    launches: list[object] = []
    with HandoffContext.from_settings(settings) as ctx:
        assert len(ctx.trusted) == len(trusted)
        with pytest.raises(SignatureInvalid, match="does not trust"):
            spawn_handoff(manifest.handoff_id, launches.append, ctx=ctx)
    assert launches == []


@requirement("D6.trust")
def test_a_host_that_trusts_others_makes_no_key_of_its_own_until_it_provisions(
    environ: dict[str, str], config: Path, tmp_path: Path
) -> None:
    write(config / "trusted_provisioners.json", json.dumps([str(SigningKey.generate().public)]))
    with HandoffContext.from_settings(Settings.load(environ)):
        assert not (tmp_path / "state" / "keys").exists()


def test_a_state_directory_that_cannot_be_made_is_told_with_the_variable_that_sets_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "file", "")
    with pytest.raises(SettingsError, match="cannot be made") as caught:
        HandoffContext.from_settings(Settings.load({**environ, "HANDOFF_STATE_DIR": str(tmp_path / "file" / "state")}))
    assert "HANDOFF_STATE_DIR" in str(caught.value.hint)
