"""POST /v1/fetch-data and /internal/data-broker: before FastAPI, whose routing and models would cost more than the hit itself.

Two ways lead through here. As an ASGI application it serves any server. A server that calls `begin` with a whole body at hand
(broker_edge/protocol.py) spares a hit the task, the scope and the messages. The order at the end is the same for both and
matters: the trail closes, its row goes to the journal, and only then does the answer start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from broker_edge.api.asgi import Answer, Gone, Receive, Scope, Send, check_size, read, send_answer
from broker_edge.api.envelope import Headers, lines, problem, reply
from broker_edge.api.intake import Reads
from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import CallerError, EdgeError, TierBroken
from broker_edge.flow.broker import Broker, Order
from broker_edge.flow.journal import Journal
from broker_edge.flow.tiers import Nothing


class Sink(Protocol):
    """Renders what happened, each in its own form."""

    def answer(self, trail: Trail) -> None: ...

    def flight(self, trail: FlightTrail) -> None: ...


class Begin(Protocol):
    def __call__(self, traceparent: bytes | None, tracestate: bytes | None) -> TraceContext: ...


Respond = Callable[[Answer], None]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
OnFailure = Callable[[str, BaseException, str | None], None]


def show(trail: Trail, sinks: Sequence[Sink], on_failure: OnFailure) -> None:
    """Hand a closed trail to those who render it."""
    for sink in sinks:
        try:
            sink.answer(trail)
        except Exception as error:  # noqa: BLE001 the answer is given: a sink that fails is no reason to take it back
            on_failure("sink", error, None)


class Asked:
    """One request on its way to its answer."""

    __slots__ = ("answer", "order", "trail")

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.order: Order | None = None
        self.answer: Answer | None = None


class FetchEndpoint:
    """One way to ask, which `intake` reads; `sinks` see every closed trail after its answer is on the way."""

    def __init__(
        self,
        intake: Reads,
        broker: Broker,
        journal: Journal,
        begin: Begin,
        new_span_id: Callable[[], int],
        sinks: Sequence[Sink],
        on_failure: OnFailure,
        *,
        max_request_bytes: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._begin = begin
        self._new_span_id = new_span_id
        self._sinks = sinks
        self._on_failure = on_failure
        self._max_request_bytes = max_request_bytes
        self._now = now
        self._intake = intake
        self._settled: list[tuple[Asked, Respond]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trail = self._trail(scope["headers"])
        try:
            asked = self._ask(Asked(trail), await read(receive, self._max_request_bytes))
        except CallerError as error:
            asked = self._failed(Asked(trail), error)
        except asyncio.CancelledError:
            asked = self._given_up(Asked(trail))
        except Gone:
            return
        if asked.answer is None:
            await self._bring(asked)
        await send_answer(send, self._recorded(asked))
        self._show(trail)

    def begin(self, headers: Headers, body: bytes, respond: Respond, spawn: Spawn) -> None:
        """Answer a request whose body is whole: `respond` is called once, at the earliest in the next loop tick.

        `spawn` runs what can't be answered from a tier at once; a task that it cancels answers OVERLOADED.
        """
        asked = self._ask(Asked(self._trail(headers)), body)
        if asked.answer is not None:
            self._settle(asked, respond)
            return
        assert asked.order is not None  # noqa: S101 what was not answered was asked

        def found(word: Entry | Nothing) -> None:
            if self._serve(asked, word):
                self._settle(asked, respond)
            else:
                spawn(self._bring_on(asked, respond, word))

        if not self._broker.look(asked.order, asked.trail, found):
            spawn(self._bring_on(asked, respond))

    def _ask(self, asked: Asked, body: bytes) -> Asked:
        """Read the request; answered already where it can't be served, or is at hand."""
        trail = asked.trail
        try:
            check_size(len(body), self._max_request_bytes)
            asked.order = self._broker.ask(self._intake.request(body, trail), trail)
            fetched = self._broker.at_hand(asked.order, trail)
            if fetched is not None:
                self._deliver(asked, asked.order, fetched)
        except EdgeError as error:
            self._failed(asked, error)
        except Exception as error:  # noqa: BLE001 the caller gets an answer and the log gets the failure's name
            self._broke(asked, error)
        return asked

    def _serve(self, asked: Asked, word: Entry | Nothing) -> bool:
        """Whether the hot tier's word, or a failure to read it, is the answer."""
        assert asked.order is not None  # noqa: S101 it was asked
        try:
            fetched = self._broker.served(asked.order, word)
            if fetched is not None:
                self._deliver(asked, asked.order, fetched)
        except EdgeError as error:
            self._failed(asked, error)
        except Exception as error:  # noqa: BLE001 as above: nobody else answers this request
            self._broke(asked, error)
        return asked.answer is not None

    async def _bring(self, asked: Asked, word: Entry | Nothing | None = None) -> None:
        assert asked.order is not None  # noqa: S101 it was asked
        try:
            self._deliver(asked, asked.order, await self._broker.bring(asked.order, asked.trail, word))
        except EdgeError as error:
            self._failed(asked, error)
        except asyncio.CancelledError:
            self._given_up(asked)
        except Exception as error:  # noqa: BLE001 as above
            self._broke(asked, error)

    async def _bring_on(self, asked: Asked, respond: Respond, word: Entry | Nothing | None = None) -> None:
        await self._bring(asked, word)
        self._give(asked, respond, self._recorded(asked))
        self._show(asked.trail)

    def _settle(self, asked: Asked, respond: Respond) -> None:
        """Answer with all that are settled in this loop tick: their rows share one write."""
        self._settled.append((asked, respond))
        if len(self._settled) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        settled, self._settled = self._settled, []
        try:
            self._journal.record_all([asked.trail for asked, _ in settled])
            answers = [asked.answer for asked, _ in settled]
        except Exception:  # noqa: BLE001 none is written: then each for itself, so that one can't take the others along
            answers = [self._recorded(asked) for asked, _ in settled]
        for (asked, respond), answer in zip(settled, answers, strict=True):
            assert answer is not None  # noqa: S101 it is settled
            self._give(asked, respond, answer)
        for asked, _ in settled:
            self._show(asked.trail)

    def _give(self, asked: Asked, respond: Respond, answer: Answer) -> None:
        try:
            respond(answer)
        except Exception as error:  # noqa: BLE001 others wait behind this one
            self._on_failure("respond", error, f"{asked.trail.context.trace_id:032x}")

    def _recorded(self, asked: Asked) -> Answer:
        """The answer, once its row is written; an answer that can't be written down is not given."""
        try:
            self._journal.record(asked.trail)
        except TierBroken as error:
            self._on_failure("journal", error, f"{asked.trail.context.trace_id:032x}")
            self._withhold(asked, error)
        except Exception as error:  # noqa: BLE001 a row that can't be packed
            self._broke(asked, error)
        assert asked.answer is not None  # noqa: S101 it is settled
        return asked.answer

    def _withhold(self, asked: Asked, error: EdgeError) -> None:
        asked.trail.withhold(error)
        headers, body = problem(error)
        asked.answer = Answer(error.kind.status, lines(headers), (body,))

    def _show(self, trail: Trail) -> None:
        show(trail, self._sinks, self._on_failure)

    def _trail(self, headers: Headers) -> Trail:
        traceparent = tracestate = None
        for name, value in headers:
            if name == b"traceparent":
                traceparent = value
            elif name == b"tracestate":  # a list, which may come in several lines (W3C Trace Context section 3.3.1.1)
                tracestate = value if tracestate is None else b"%s,%s" % (tracestate, value)
        return Trail(self._begin(traceparent, tracestate), self._now(), self._new_span_id)

    def _deliver(self, asked: Asked, order: Order, fetched: Fetched) -> None:
        asked.trail.deliver(fetched, self._now())
        asked.answer = Answer(200, *reply(asked.trail, order.refill.plan.source.caching.ttl))

    def _broke(self, asked: Asked, error: Exception) -> None:
        self._on_failure("fetch", error, f"{asked.trail.context.trace_id:032x}")
        self._failed(asked, EdgeError("INTERNAL", "the edge failed"))

    def _given_up(self, asked: Asked) -> Asked:
        """The server gives up what runs when its shutdown time-out ends: the caller hears it all the same."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return self._failed(asked, EdgeError("OVERLOADED", "the edge is stopping"))

    def _failed(self, asked: Asked, error: EdgeError) -> Asked:
        if asked.trail.ended_at is None:
            asked.trail.fail(error, self._now())
        else:
            asked.trail.withhold(error)
        headers, body = problem(error, asked.trail)
        asked.answer = Answer(error.kind.status, lines(headers), (body,))
        return asked
