"""Secrets at rest: sealed with AES-256-GCM under a ring of keys, each bound to the row that it stands in.

The envelope is text, `v1.<key id>.<base64url of nonce and ciphertext>`. Fails closed: what was altered, moved to another row or
sealed with a key that is not in the ring opens as nothing at all.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker_edge.errors import EdgeError

Scalar = str | int | float | bool | None

KEY_BYTES: Final = 32
_VERSION: Final = "v1"
_NONCE_BYTES: Final = 12  # random: NIST SP 800-38D section 8.3 lets one key seal 2**32 values so
_DOMAIN: Final = b"broker_edge secret v1"
_DIGEST: Final = b"be digest v1"
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Unopened(EdgeError):
    """What is sealed can't be had: no waiting and no retry opens it. `key_id` is that of the key where it lacks."""

    def __init__(self, key_id: str | None = None) -> None:
        lacks = f"a secret is sealed with key {key_id}, which is not among the keys in force"
        super().__init__(
            "INTERNAL", lacks if key_id is not None else "a secret can't be opened with the encryption keys in force"
        )
        self.key_id = key_id


class KeyRing:
    """Keys by id, in their order: the first one seals, all of them open. Holds secrets and is never shown."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self.ids = tuple(keys)
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        # Of the first key: what a digest names is sealed with that. A new key comes behind the others, and old ones go from
        # there, so that digests change once in a rotation, when the first does.
        self._digest_key = blake2b(key=keys[self.current], person=_DIGEST, digest_size=32).digest()

    @property
    def current(self) -> str:
        return self.ids[0]

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read `id:key`, comma separated, each key 32 bytes in base64. Raises ValueError, which quotes nothing of the text."""
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
            name, colon, encoded = entry.partition(":")
            if not colon or not _KEY_ID.fullmatch(name):
                raise ValueError(f"entry {number} must be id:key, the id of letters, digits, - and _")
            if name in keys:
                raise ValueError(f"entry {number} has the id of another one")
            keys[name] = _key(encoded, number)
        if not keys:
            raise ValueError("must hold a key")
        return cls(keys)

    def cipher(self, key_id: str) -> AESGCM | None:
        return self._ciphers.get(key_id)

    def digest(self, parts: Iterable[str | None]) -> str:
        """A keyed digest in 32 hex digits: of a password it can't be guessed by who has not the ring."""
        return hmac.new(self._digest_key, _framed(parts), "sha256").hexdigest()[:32]

    def __repr__(self) -> str:
        return f"KeyRing({len(self.ids)} keys)"


class Vault:
    """Seals JSON scalars and opens them again. `about` says what is sealed: it must be the same at both times."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self.digest = ring.digest
        self.prefix = f"{_VERSION}.{ring.current}."

    @property
    def key_ids(self) -> tuple[str, ...]:
        return self._ring.ids

    def seal(self, value: Scalar, *about: str | None) -> str:
        """The envelope of a value, under the ring's first key."""
        key_id = self._ring.current
        cipher = self._ring.cipher(key_id)
        assert cipher is not None  # noqa: S101 the ring's own first id
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + cipher.encrypt(nonce, json.dumps(value, allow_nan=False).encode(), _bound(key_id, about))
        return self.prefix + base64.urlsafe_b64encode(sealed).decode()

    def open(self, sealed: str, *about: str | None) -> Scalar:
        """The value of an envelope. Raises Unopened."""
        key_id, data = _taken_apart(sealed)
        cipher = self._ring.cipher(key_id)
        if cipher is None:
            raise Unopened(key_id)
        if len(data) <= _NONCE_BYTES:
            raise Unopened
        try:
            text = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(key_id, about))
        except InvalidTag:
            raise Unopened from None
        value: Scalar = json.loads(text)
        return value


def key_id_of(sealed: str) -> str | None:
    """The id of the key that an envelope was sealed with; None where it is no envelope."""
    version, _, rest = sealed.partition(".")
    key_id, dot, _ = rest.partition(".")
    return key_id if version == _VERSION and dot and _KEY_ID.fullmatch(key_id) else None


def new_entry(name: str) -> str:
    """A new key as an entry of the ring."""
    return f"{name}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def _key(encoded: str, number: int) -> bytes:
    try:
        # Both alphabets, padded or not: what people paste.
        text = encoded.replace("-", "+").replace("_", "/").rstrip("=")
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of entry {number} must be {KEY_BYTES} bytes in base64")
    return key


def _taken_apart(sealed: str) -> tuple[str, bytes]:
    key_id = key_id_of(sealed)
    if key_id is None:
        raise Unopened
    text = sealed.rpartition(".")[2]
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Unopened from None
    # One envelope has one spelling: the last bits of base64 could else be changed unnoticed.
    if base64.urlsafe_b64encode(data).decode() != text:
        raise Unopened
    return key_id, data


def _bound(key_id: str, about: tuple[str | None, ...]) -> bytes:
    return _DOMAIN + _framed((key_id, *about))


def _framed(parts: Iterable[str | None]) -> bytes:
    """Lengths first, so that no part can pass for the end of another; an absent one is not the empty one."""
    encoded = [None if part is None else part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(b"-" if part is None else b"%d:%b" % (len(part), part) for part in encoded)
