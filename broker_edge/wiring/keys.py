"""Which keys secrets are sealed with: the setting's, else those of a file in the data directory, made at the first start."""

from __future__ import annotations

import secrets

from broker_edge.backends.key_file import NAME, KeyFileError, make_keys, read_keys
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.settings import PREFIX, Settings, SettingsError
from broker_edge.telemetry.logs import Log


def keys_of(settings: Settings) -> KeyRing | None:
    """The keys in force, None where none has been made yet. Raises SettingsError where they can't be used."""
    if settings.encryption_keys is not None:
        return KeyRing.parse(settings.encryption_keys.get_secret_value())
    try:
        text = read_keys(settings.data_dir)
    except KeyFileError as error:
        raise SettingsError(f"{PREFIX}DATA_DIR: {error}") from None
    return None if text is None else _parsed(text)


def make_vault(settings: Settings, log: Log) -> Vault:
    """The vault of this process, with a key made for it where there is none. Raises SettingsError."""
    ring = keys_of(settings)
    if ring is None:
        try:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            ring = _parsed(make_keys(settings.data_dir, new_entry(f"k{secrets.token_hex(4)}")))
        except (KeyFileError, OSError):
            raise SettingsError(f"{PREFIX}DATA_DIR: {NAME} can't be written") from None
        log.event("an encryption key was made in DATA_DIR", file=NAME)
    if settings.encryption_keys is None and not settings.embedded:
        log.warning("the encryption key is in DATA_DIR alone: other instances need it too", setting=f"{PREFIX}ENCRYPTION_KEYS")
    return Vault(ring)


def _parsed(text: str) -> KeyRing:
    try:
        return KeyRing.parse(text)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}DATA_DIR: {NAME}: {error}") from None
