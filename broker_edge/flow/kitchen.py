"""What every refill works with; made once, by wiring."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from broker_edge.flow.background import Background
from broker_edge.flow.backoff import Backoff
from broker_edge.flow.calling import Calls
from broker_edge.flow.tiers import Tiers


class Kitchen:
    """What refills are made with; `check_spool` raises TierBroken while an answer could not be written down: why pay for it?"""

    def __init__(
        self,
        tiers: Tiers,
        calls: Calls,
        background: Background,
        *,
        new_object_id: Callable[[], UUID],
        check_spool: Callable[[], None],
        backoff: Backoff | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.tiers = tiers
        self.calls = calls
        self.background = background
        self.backoff = backoff or Backoff()
        self.new_object_id = new_object_id
        self.check_spool = check_spool
        self.now = now
