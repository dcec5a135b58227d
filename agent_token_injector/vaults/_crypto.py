"""The embedded vault's key: it seals secrets and tags records, and never shows itself.

A sealed value is `nonce || AES-256-GCM ciphertext || GCM tag`. What it belongs to (format version, kind, folder, name) is
its associated data, so that a value opens in its own place and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_FORMAT: Final = "agent_token_injector/embedded-vault/v1"


class SealBroken(Exception):
    """A sealed value does not open here: altered, moved, or sealed with another key."""


class VaultKey:
    """The 32 bytes of the key file, split into one key to seal and one to tag, so that neither use weakens the other.

    A random 96-bit nonce is safe for 2**32 values under one key (NIST SP 800-38D, 8.3): far more than one file's life.
    """

    __slots__ = ("_sealing", "_tagging")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a vault key has {KEY_BYTES} bytes, not {len(raw)}")
        self._sealing = hmac.digest(raw, f"{_FORMAT}/seal".encode(), "sha256")
        self._tagging = hmac.digest(raw, f"{_FORMAT}/tag".encode(), "sha256")

    def __repr__(self) -> str:
        return "<VaultKey>"

    def seal(self, value: bytes, *place: str) -> bytes:
        """`value`, encrypted for exactly `place`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._sealing).encrypt(nonce, value, _encode(place))

    def open(self, sealed: bytes, *place: str) -> bytes:
        """What was sealed for `place`. Raises SealBroken for anything else."""
        try:
            return AESGCM(self._sealing).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _encode(place))
        except (InvalidTag, ValueError, TypeError):
            # ValueError: a cut value is too short to hold a nonce and a tag. TypeError: SQLite gave no bytes at all.
            raise SealBroken from None

    def tag(self, *parts: str | int) -> bytes:
        """A keyed digest of `parts` (HMAC-SHA256): without the key file nobody can write a record that carries one."""
        return hmac.digest(self._tagging, _encode(parts), hashlib.sha256)


def _encode(parts: tuple[str | int, ...]) -> bytes:
    # JSON, because its borders between parts cannot be moved by what a part holds; ASCII, so that every str encodes.
    return json.dumps([_FORMAT, *parts], ensure_ascii=True, separators=(",", ":")).encode("ascii")
