"""Operator configuration: where things are, which vendor endpoints and keys are used, and which policy is in force.

Read from the environment, and for what is not set there from one `.env` file: the one that HANDOFF_ENV_FILE names, or
`.env` in the configuration directory. Never from the working directory, where an agent may have left one.

Key files are read when they are used and at no other time. A file that holds a secret or decides whom to trust must
belong to this user and be closed to others, or it is refused; and so must the configuration directory, where the
absence of policy.json says something too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from agent_token_injector.errors import SettingsError, SpecError
from agent_token_injector.names import Layout, VaultPath
from agent_token_injector.signing import SigningKey, VerifyKey
from agent_token_injector.strict_json import strict_json

PREFIX: Final = "HANDOFF_"


class GitHubSettings(BaseModel):
    """The GitHub App that mints installation tokens. Its key stays with the provisioner."""

    model_config = ConfigDict(frozen=True)

    api_url: str = "https://api.github.com"
    app_client_id: str
    installation_id: int
    private_key_file: Path


class Settings(BaseModel):
    """The configuration of one installation. `Settings.load()` reads it; every field has the variable named beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path
    """HANDOFF_STATE_DIR: the embedded vault, keys, audit files and runs. Default: the platform's state directory."""
    config_dir: Path
    """HANDOFF_CONFIG_DIR: operators.json, policy.json, trusted_provisioners.json, .env."""
    vault: Literal["embedded"] = "embedded"
    """HANDOFF_VAULT."""
    vault_root: str = "/MooseQuest"
    """HANDOFF_VAULT_ROOT: the folder under which handoffs/ lies."""
    provision_deadline: timedelta = Field(default=timedelta(minutes=10), gt=timedelta(0), le=timedelta(hours=1))
    """HANDOFF_PROVISION_DEADLINE: after this a provisioning that did not finish is debris (D2)."""
    audit_durability: Literal["group", "sync"] = "group"
    """HANDOFF_AUDIT_DURABILITY: sync waits for every event to be on disk."""
    github: GitHubSettings | None = None
    """HANDOFF_GITHUB_APP_CLIENT_ID, _INSTALLATION_ID, _PRIVATE_KEY_FILE, and _API_URL for GitHub Enterprise."""
    stripe_api_url: str = "https://api.stripe.com"
    """HANDOFF_STRIPE_API_URL."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the configuration. Raises SettingsError naming the variable that is wrong."""
        given = {
            key: value for key, value in (os.environ if environ is None else environ).items() if key.startswith(PREFIX)
        }
        config_dir = Path(given.get("HANDOFF_CONFIG_DIR") or _platform_dir("config"))
        if config_dir.exists() and not config_dir.is_dir():
            raise SettingsError(
                f"HANDOFF_CONFIG_DIR, {config_dir}, is no directory",
                path="config_dir",
                hint="name the directory that holds policy.json and operators.json",
            )
        check_directory(config_dir)
        merged = {**_env_file(given, config_dir), **given}
        fields: dict[str, Any] = {
            "state_dir": Path(merged.get("HANDOFF_STATE_DIR") or _platform_dir("state")),
            "config_dir": config_dir,
            "github": _github(merged),
        }
        for name in ("vault", "vault_root", "provision_deadline", "audit_durability", "stripe_api_url"):
            if value := merged.get(PREFIX + name.upper()):
                fields[name] = value
        try:
            settings = cls.model_validate(fields)
        except ValidationError as error:
            raise _settings_error(error) from None
        try:
            settings.layout()
        except ValueError as error:
            raise SettingsError("HANDOFF_VAULT_ROOT is not usable", path="vault_root", cause=str(error)) from None
        return settings

    def layout(self) -> Layout:
        """Where handoffs live in the vault."""
        return Layout(VaultPath(self.vault_root))

    def operators(self) -> dict[str, tuple[str, ...]]:
        """Who may approve, from operators.json: {"you@example.com": ["ed25519:..."]}. Empty when there is none."""
        document = self._json("operators.json")
        found: dict[str, tuple[str, ...]] = (
            {} if document is None else _adapt(dict[str, tuple[str, ...]], document, "operators.json")
        )
        for keys in found.values():
            _public_keys(keys, "operators.json")
        return found

    def policy_overrides(self) -> dict[str, Any]:
        """What policy.json tightens. Empty when there is none."""
        document = self._json("policy.json")
        return {} if document is None else _adapt(dict[str, Any], document, "policy.json")

    def signing_key(self) -> SigningKey:
        """The provisioner's key, made at first use in the state directory, with its public half beside it (`.pub`)."""
        path = self.state_dir / "keys" / "provisioner.key"
        key = load_or_create_key(path)
        public = path.with_suffix(".pub")
        if not public.exists():
            with suppress(
                OSError
            ):  # For people to copy into another host's trusted_provisioners.json; nothing reads it.
                write_new_secret(public, f"{key.public}\n".encode("ascii"))
        return key

    def trusted_keys(self) -> tuple[VerifyKey, ...]:
        """Whose manifests this host dispatches: those that trusted_provisioners.json lists, be it none at all.

        Without that file only this host's own provisioner, whose key is made when there is none yet.
        """
        document = self._json("trusted_provisioners.json")
        if document is None:
            return (self.signing_key().public,)
        return _public_keys(_adapt(list[str], document, "trusted_provisioners.json"), "trusted_provisioners.json")

    def _json(self, name: str) -> Any:
        path = self.config_dir / name
        check_directory(self.config_dir)
        if not _is_there(path):
            return None
        try:
            return strict_json(read_trusted(path), what=str(path))
        except SettingsError:
            raise
        except SpecError as error:
            raise SettingsError(error.what, path=name, cause=error.cause, hint=error.hint) from None


def check_directory(path: Path) -> None:
    """Return when nobody else can add files to the configuration directory or take them away, or there is none.

    Raises SettingsError: whoever can delete policy.json lifts what it tightens, without writing a single file.
    """
    if not _is_there(path):
        return
    try:
        link, info = path.lstat(), path.stat()
    except OSError as error:
        raise SettingsError(
            f"the configuration directory {path} cannot be looked at", path="config_dir", cause=error.strerror
        ) from None
    if not {link.st_uid, info.st_uid} <= {os.geteuid(), 0}:
        raise SettingsError(
            f"the configuration directory {path} belongs to another user",
            path="config_dir",
            hint="name a directory of your own: HANDOFF_CONFIG_DIR",
        )
    if stat.S_IMODE(info.st_mode) & 0o022:
        raise SettingsError(
            f"the configuration directory {path} is open to others",
            path="config_dir",
            cause=f"mode {stat.S_IMODE(info.st_mode):04o}: who can delete policy.json can lift what it tightens",
            hint=f"chmod go-w {path}",
        )


def read_trusted(path: Path, *, secret: bool = False) -> bytes:
    """The bytes of a configuration file that only its owner could have written (and, if `secret`, read).

    Raises SettingsError for a missing file, a link, another owner, or a mode that lets others in.
    """
    try:
        # Not blocking: a pipe in a file's place would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read",
            cause="it is a symbolic link" if error.errno == errno.ELOOP else error.strerror,
            hint="check the path in the configuration",
        ) from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise SettingsError(f"{path} is not a file", hint="check the path in the configuration")
        forbidden = 0o077 if secret else 0o022
        if info.st_uid not in {os.geteuid(), 0}:
            raise SettingsError(f"{path} belongs to another user", hint="make it your own")
        if stat.S_IMODE(info.st_mode) & forbidden:
            raise SettingsError(
                f"{path} is open to others", cause=f"mode {stat.S_IMODE(info.st_mode):04o}", hint=f"chmod go-rwx {path}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def load_or_create_key(path: Path) -> SigningKey:
    """The signing key in `path`, made there (0600, in a 0700 directory) when there is none yet.

    Two processes that come first at once agree on one key. Raises SettingsError.
    """
    if not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_new_secret(path, SigningKey.generate().seed().hex().encode("ascii"))
        except FileExistsError:
            pass
        except OSError as error:
            raise SettingsError(f"{path} cannot be written", cause=error.strerror) from None
    return read_key(path)


def read_key(path: Path) -> SigningKey:
    """The signing key in `path`. Raises SettingsError when it is missing, open to others, or not a key."""
    text = read_trusted(path, secret=True)
    try:
        return SigningKey.from_seed(bytes.fromhex(text.decode("ascii").strip()))
    except ValueError:
        raise SettingsError(f"{path} does not hold a signing key", hint="move it away to have a new one made") from None


def write_new_secret(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, complete or not at all, mode 0600. Raises FileExistsError, OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        # A link is create-only where a rename would replace: of two first-comers one wins and both read its file.
        os.link(scratch, path)
    finally:
        scratch.unlink()


def read_secret_file(path: Path) -> SecretStr:
    """A secret from a file closed to others, without the newline an editor leaves. Raises SettingsError."""
    try:
        return SecretStr(read_trusted(path, secret=True).decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError:
        raise SettingsError(f"{path} does not hold text") from None


def _platform_dir(kind: Literal["state", "config"]) -> str:
    import platformdirs

    return platformdirs.user_state_dir("handoff") if kind == "state" else platformdirs.user_config_dir("handoff")


def _env_file(given: Mapping[str, str], config_dir: Path) -> dict[str, str]:
    named = given.get("HANDOFF_ENV_FILE")
    path = Path(named) if named else config_dir / ".env"
    if not named and not _is_there(path):
        return {}
    import io

    from dotenv import dotenv_values

    # No interpolation: a value is what it says, and does not read this process's environment.
    try:
        text = read_trusted(path).decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{path} does not hold text") from None
    values = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {key: value for key, value in values.items() if key.startswith(PREFIX) and value is not None}


def _github(merged: Mapping[str, str]) -> dict[str, str] | None:
    fields = {
        name: merged[f"HANDOFF_GITHUB_{name.upper()}"]
        for name in ("api_url", "app_client_id", "installation_id", "private_key_file")
        if merged.get(f"HANDOFF_GITHUB_{name.upper()}")
    }
    return fields if fields.keys() - {"api_url"} else None


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name; a link that leads nowhere is, and so is refused and not overlooked."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingsError(f"{path} cannot be looked at", cause=error.strerror) from None
    return True


def _public_keys(texts: Sequence[str], name: str) -> tuple[VerifyKey, ...]:
    try:
        return tuple(VerifyKey.parse(text) for text in texts)
    except SettingsError as error:
        raise SettingsError(f"{name} lists a key that is none", path=name, cause=error.what, hint=error.hint) from None


def _adapt(kind: Any, document: Any, name: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        raise SettingsError(
            f"{name} is not what it should be",
            path=name,
            cause=error.errors(include_url=False, include_input=False)[0]["msg"],
        ) from None


def _settings_error(error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    variable = PREFIX + path.upper().replace(".", "_")
    return SettingsError(f"{variable} is not usable", path=path, cause=first["msg"])
