"""The same servers as the suite's."""

from __future__ import annotations

from tests.conftest import anyio_backend, bureau

__all__ = ["anyio_backend", "bureau"]
