"""What every test may use; servers are started once per worker process (see tests/servers.py)."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
