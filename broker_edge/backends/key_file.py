"""The embedded default's encryption key: a file in the data directory that only its owner may read, made once."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

NAME: Final = "encryption_keys"
_OPEN_TO_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class KeyFileError(Exception):
    """The file can't be used; the message is one line, with what to do about it."""


def read_keys(directory: Path) -> str | None:
    """The text of the file, None where there is none. Raises KeyFileError."""
    try:
        with (directory / NAME).open(encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & _OPEN_TO_OTHERS:
                raise KeyFileError(f"{NAME} may be read by others: chmod 600 it, and rotate the key if anybody may have")
            return file.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise KeyFileError(f"{NAME} can't be read") from None


def make_keys(directory: Path, entry: str) -> str:
    """Write `entry` where there is no file yet; answers what the file holds. Raises KeyFileError.

    Written whole under another name and then linked, so that of several that start at once one wins, and nobody ever reads half.
    """
    draft = directory / f".{NAME}-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{entry}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, directory / NAME)
    except OSError:
        raise KeyFileError(f"{NAME} can't be written") from None
    finally:
        draft.unlink(missing_ok=True)
    text = read_keys(directory)
    if text is None:
        raise KeyFileError(f"{NAME} went away while it was made")
    return text
