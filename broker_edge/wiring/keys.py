"""Which keys secrets are sealed with: the setting's, else those of a file in the data directory, made at the first start."""

from __future__ import annotations

import secrets

from broker_edge.backends.key_file import NAME, KeyFileError, make_keys, read_keys
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.settings import PREFIX, Settings, SettingsError
from broker_edge.telemetry.logs import Log


def make_vault(settings: Settings, log: Log) -> Vault:
    """The vault of this process; raises SettingsError where the keys can't be used."""
    if settings.encryption_keys is not None:
        return Vault(KeyRing.parse(settings.encryption_keys.get_secret_value()))
    try:
        text = read_keys(settings.data_dir)
        if text is None:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = make_keys(settings.data_dir, new_entry(f"k{secrets.token_hex(4)}"))
            log.event("an encryption key was made in DATA_DIR", file=NAME)
        vault = Vault(KeyRing.parse(text))
    except KeyFileError as error:
        raise SettingsError(f"{PREFIX}DATA_DIR: {error}") from None
    except (OSError, ValueError):
        raise SettingsError(f"{PREFIX}DATA_DIR: {NAME} holds no keys that can be read") from None
    if not settings.embedded:
        log.warning("the encryption key is in DATA_DIR alone: other instances need it too", setting=f"{PREFIX}ENCRYPTION_KEYS")
    return vault
