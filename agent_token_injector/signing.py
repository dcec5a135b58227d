"""Ed25519 signatures over RFC 8785 canonical JSON, each bound to what kind of document it signs.

The bytes signed are `<type tag> NUL <canonical JSON>`, so that a signature made for one kind of document says nothing
about another. Keys are told apart by the first 16 hex digits of the SHA-256 of the public key.

Pure: no key is read from or written to a file here (settings.py does that).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import rfc8785

from agent_token_injector.errors import SettingsError, SignatureInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PUBLIC: Final = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)")


def canonical(document: Any) -> bytes:
    """The RFC 8785 form of a JSON document: one spelling, so that one digest. Raises ValueError outside JSON."""
    try:
        return rfc8785.dumps(document)
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"not canonical JSON: {error}") from None


def digest(type_tag: str, document: Any) -> str:
    """`sha256:<hex>` of a tagged document."""
    return "sha256:" + hashlib.sha256(_tagged(type_tag, document)).hexdigest()


def secret_digest(value: str, salt: str) -> str:
    """`hmac-sha256:<hex>` of a secret under a salt of its own: compares with a copy, tells nothing of the value."""
    return "hmac-sha256:" + hmac.new(bytes.fromhex(salt), value.encode(), "sha256").hexdigest()


def _tagged(type_tag: str, document: Any) -> bytes:
    return type_tag.encode("ascii") + b"\x00" + canonical(document)


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key that signatures are checked against."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> VerifyKey:
        """Read `ed25519:<base64>`. Raises SettingsError when it is not one."""
        match = _PUBLIC.fullmatch(text.strip())
        if match is None:
            raise SettingsError("a public key is not readable", hint="write it as ed25519:<44 characters of base64>")
        return cls(base64.b64decode(match[1]))

    def __str__(self) -> str:
        return "ed25519:" + base64.b64encode(self.raw).decode("ascii")

    @property
    def key_id(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verify(self, type_tag: str, document: Any, signature: str) -> None:
        """Return when `signature` (base64) is this key's over the tagged document; raise SignatureInvalid otherwise."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            raw = base64.b64decode(signature, validate=True)
            if base64.b64encode(raw).decode("ascii") != signature:
                raise ValueError("one signature has one spelling, and the unused bits of base64 give others")  # noqa: TRY301 -- one refusal for every cause
            Ed25519PublicKey.from_public_bytes(self.raw).verify(raw, _tagged(type_tag, document))
        except (InvalidSignature, binascii.Error, ValueError):
            raise SignatureInvalid(
                f"the signature by key {self.key_id} does not fit the document",
                cause="it was altered after it was signed, or signed as something else",
            ) from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key. Its repr and str show the key id and nothing else."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed. Raises SettingsError for another length."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if len(seed) != 32:
            raise SettingsError("a signing key is not readable", cause=f"its seed has {len(seed)} bytes, not 32")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def seed(self) -> bytes:
        """The 32 secret bytes, for the one place that stores them (settings.py, mode 0600)."""
        return self._private.private_bytes_raw()

    @property
    def public(self) -> VerifyKey:
        return VerifyKey(self._private.public_key().public_bytes_raw())

    @property
    def key_id(self) -> str:
        return self.public.key_id

    def __str__(self) -> str:
        return f"signing key {self.key_id}"

    def sign(self, type_tag: str, document: Mapping[str, Any]) -> str:
        """The base64 signature over the tagged canonical document."""
        return base64.b64encode(self._private.sign(_tagged(type_tag, document))).decode("ascii")
