"""Names: how a handoff, its identities and its place in the vault are called, formatted and read back.

Names are derived, never chosen: from a task slug and a UTC day follow the handoff's id, the name of every identity
minted for it and its vault path, so that anything of ours can be found again without a record (ADR §4.2, §4.3).

Everything here is ASCII and closed: a look-alike letter, an encoded character, an empty or dotted path segment is not
normalised but refused, because a name that two systems read differently is a way around a scope.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final, Self

MAX_SLUG: Final = 40
_SLUG: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*", re.ASCII)
_HANDOFF: Final = re.compile(r"(?P<slug>[a-z0-9]+(?:-[a-z0-9]+)*)-(?P<day>[0-9]{8})", re.ASCII)
_IDENTITY: Final = re.compile(
    r"(?P<surface>[a-z]+(?:-[a-z]+)*?)-handoff-(?P<slug>[a-z0-9]+(?:-[a-z0-9]+)*)-(?P<day>[0-9]{8})", re.ASCII
)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_SECRET: Final = re.compile(r"[A-Z][A-Z0-9_]{0,99}", re.ASCII)
_SECRET_GLOB: Final = re.compile(r"[A-Z0-9_]{0,100}\*?", re.ASCII)
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)


def _day(text: str, what: str) -> date:
    try:
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ValueError(f"{what}: {text!r} is not a day (YYYYMMDD)") from None


@dataclass(frozen=True, slots=True, order=True)
class TaskSlug:
    """The card's slug: `[a-z0-9]+(-[a-z0-9]+)*`, at most 40 characters. Raises ValueError otherwise."""

    value: str

    def __post_init__(self) -> None:
        if len(self.value) > MAX_SLUG:
            raise ValueError(f"a task slug has at most {MAX_SLUG} characters, this one has {len(self.value)}")
        if not _SLUG.fullmatch(self.value):
            raise ValueError(
                f"{self.value!r} is not a task slug: lower-case ASCII letters and digits, words joined by single hyphens"
            )

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, order=True)
class HandoffId:
    """`<task-slug>-<YYYYMMDD>`, the UTC day of provisioning: one handoff of one task on one day."""

    slug: TaskSlug
    day: date

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id back. Raises ValueError when `text` is not one."""
        match = _HANDOFF.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a handoff id: expected <task-slug>-<YYYYMMDD>")
        return cls(TaskSlug(match["slug"]), _day(match["day"], f"handoff id {text!r}"))

    def __str__(self) -> str:
        # Not strftime: it writes a year before 1000 with fewer than four digits.
        return f"{self.slug}-{self.day.isoformat().replace('-', '')}"


@dataclass(frozen=True, slots=True, order=True)
class IdentityName:
    """`<surface>-handoff-<task-slug>-<YYYYMMDD>` (ADR §4.2); `surface` is the name's prefix, such as `infisical` or `aws`."""

    surface: str
    handoff: HandoffId

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a full, unshortened name back. Raises ValueError for a stranger's name."""
        match = _IDENTITY.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not an identity of ours: expected <surface>-handoff-<task-slug>-<YYYYMMDD>")
        handoff = HandoffId(TaskSlug(match["slug"]), _day(match["day"], f"identity {text!r}"))
        return cls(match["surface"], handoff)

    def __str__(self) -> str:
        return f"{self.surface}-handoff-{self.handoff}"

    def shortened(self, limit: int) -> str:
        """The name in at most `limit` characters: itself, or cut with a stable hash of the whole at the end."""
        full = str(self)
        if len(full) <= limit:
            return full
        digest = hashlib.sha256(full.encode("ascii")).hexdigest()[:8]
        return f"{full[: limit - 9].rstrip('-')}-{digest}"


@dataclass(frozen=True, slots=True, order=True)
class VaultPath:
    """An absolute folder in the vault, one spelling only: `/A/b-c/D`, no trailing slash; the root is `/`.

    Segments are `[A-Za-z0-9_-]+`, case-sensitive. Raises ValueError for `..`, `.`, `//`, encodings and anything
    else that some vault would resolve to another folder (facts: Infisical collapses slashes after checking a rule).
    """

    value: str

    def __post_init__(self) -> None:
        if self.value == "/":
            return
        if not self.value.startswith("/"):
            raise ValueError(f"vault path {self.value!r} does not start with a slash")
        for segment in self.value[1:].split("/"):
            if not _SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"vault path {self.value!r} has the segment {segment!r}: "
                    "only A-Z a-z 0-9 _ - are allowed, with no empty, dotted or encoded segment"
                )

    def __str__(self) -> str:
        return self.value

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.value[1:].split("/")) if self.value != "/" else ()

    @property
    def parent(self) -> VaultPath:
        """The folder above; the root is its own."""
        return VaultPath("/" + "/".join(self.segments[:-1]))

    def child(self, segment: str) -> VaultPath:
        if "/" in segment:
            raise ValueError(f"{segment!r} is more than one segment of a vault path")
        return VaultPath(f"{self.value.rstrip('/')}/{segment}")

    def is_within(self, other: VaultPath) -> bool:
        """Whether this is `other` or a folder below it, segment by segment (`/x-2` is not within `/x`)."""
        return self.segments[: len(other.segments)] == other.segments


@dataclass(frozen=True, slots=True, order=True)
class SecretGlob:
    """What an identity may read: one folder (not those below it) and the secrets in it whose name matches.

    Written as a path whose last segment is the pattern: `/MooseQuest/queue/staging/STRIPE_*`. The pattern is a
    secret's name, or a prefix of one followed by a single `*` at the end. Raises ValueError for any other form, `**`
    included: a wider glob cannot be written down.
    """

    folder: VaultPath
    pattern: str

    def __post_init__(self) -> None:
        if not self.pattern or not _SECRET_GLOB.fullmatch(self.pattern):
            raise ValueError(
                f"{self.pattern!r} is not a secret name pattern: capital letters, digits and _, and one * at the end at most"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `/folder/PATTERN`. Raises ValueError otherwise."""
        folder, slash, pattern = text.rpartition("/")
        if not slash:
            raise ValueError(f"{text!r} is not an absolute vault path with a secret name pattern at its end")
        return cls(VaultPath(folder or "/"), pattern)

    def __str__(self) -> str:
        return f"{self.folder.value.rstrip('/')}/{self.pattern}"

    def matches(self, folder: VaultPath, name: str) -> bool:
        """Whether the secret `name` in exactly `folder` is covered."""
        if folder != self.folder:
            return False
        if self.pattern.endswith("*"):
            return name.startswith(self.pattern[:-1])
        return name == self.pattern


def check_secret_name(name: str) -> str:
    """`name` when it is a secret's name (`[A-Z][A-Z0-9_]*`, at most 100); raises ValueError otherwise."""
    if not _SECRET.fullmatch(name):
        raise ValueError(f"{name!r} is not a secret name: capital letters, digits and _, starting with a letter")
    return name


def check_env_name(name: str) -> str:
    """`name` when POSIX allows it as an environment variable's; raises ValueError otherwise."""
    if not _ENV.fullmatch(name):
        raise ValueError(f"{name!r} is not an environment variable's name")
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    """Where handoffs live in the vault under a configurable root (default `/MooseQuest`, ADR §4.3)."""

    root: VaultPath = VaultPath("/MooseQuest")

    @property
    def handoffs(self) -> VaultPath:
        """The folder of all handoffs."""
        return self.root.child("handoffs")

    @property
    def supplied(self) -> VaultPath:
        """Where an operator leaves a credential that no vendor's API can mint, a folder a task slug."""
        return self.root.child("supplied")

    def of(self, handoff: HandoffId) -> VaultPath:
        return self.handoffs.child(str(handoff))

    def supplied_for(self, slug: TaskSlug) -> VaultPath:
        return self.supplied.child(str(slug))

    def own_glob(self, handoff: HandoffId) -> SecretGlob:
        """What a handoff's own identity may always read: everything directly in its own folder."""
        return SecretGlob(self.of(handoff), "*")


PROVISION_INTENT: Final = "PROVISION_INTENT"
PROVISION_MANIFEST: Final = "PROVISION_MANIFEST"
REVOCATION_MARK: Final = "REVOCATION_MARK"
_MINT_BEGUN: Final = "MINT_BEGUN_"


def mint_begun(surface: str) -> str:
    """The record that a credential which only its holder can revoke is about to be asked for on a surface."""
    return _MINT_BEGUN + surface.upper()


def is_record(name: str) -> bool:
    """Whether a name in a handoff's folder is one of the records of its life, and not a secret."""
    return name in {PROVISION_INTENT, PROVISION_MANIFEST, REVOCATION_MARK} or name.startswith(_MINT_BEGUN)
