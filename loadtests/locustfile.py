"""The simulated policy runners: `HitUser`, `MissUser` and `MixedUser`.

Run by `python -m loadtests.load`, or by locust itself with `--bureau` and `--rate`. Each user is paced so that all of them
together offer `--rate` requests a second; each waits for its answer first, so an edge that is too slow holds less than that.
"""

from __future__ import annotations

import json
import random
import sys
from time import perf_counter
from typing import Any

import gevent
from locust import events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment

from loadtests.payloads import body_template, fault, new_key, render, warm_key

HIT_SHARE = 0.6


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--bureau", default="http://127.0.0.1:7001", help="URL of the sample bureau, as the edge reaches it")
    parser.add_argument("--rate", type=float, default=100.0, help="Requests a second offered by all users together")
    parser.add_argument("--keys", type=int, default=1000, help="Size of the warm set that hits are drawn from")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Settle what all users share, on their base: every profile is paced alike."""
    options = environment.parsed_options
    if options is None:
        return
    PolicyRunner.template = body_template(options.bureau)
    PolicyRunner.keys = options.keys
    PolicyRunner.period = (options.num_users or 1) / options.rate


@events.test_stop.add_listener
def say_why(environment: Environment, **_: Any) -> None:
    """The kinds of failure, once each, on stderr: the counts alone don't tell."""
    for error in environment.stats.errors.values():
        print(f"{error.occurrences} x {error.name}: {error.error}", file=sys.stderr)


class PolicyRunner(FastHttpUser):
    """One policy runner on a connection of its own."""

    abstract = True
    concurrency = 1
    network_timeout = 30.0
    connection_timeout = 5.0
    template = b""
    keys = 1
    period = 1.0
    due = 0.0

    def on_start(self) -> None:
        # Users that start together would ask together: spread over one period, they offer an even stream.
        gevent.sleep(random.random() * self.period)
        self.due = perf_counter()

    def wait_time(self) -> float:
        """Seconds to the next point of this user's schedule. A late user catches up, so that a slow edge is offered no less."""
        self.due += self.period
        return max(0.0, self.due - perf_counter())

    def ask(self, tax_id: str, name: str, origin: str) -> None:
        data, headers = render(self.template, tax_id), {"content-type": "application/json"}
        with self.client.post("/v1/fetch-data", data=data, headers=headers, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            try:
                wrong = fault(json.loads(response.content), tax_id, origin)
            except (ValueError, KeyError, TypeError):
                wrong = "the reply is not the contract's"
            if wrong:
                response.failure(wrong)

    def hit(self) -> None:
        self.ask(warm_key(random.randrange(self.keys)), "hit", "CACHE")

    def miss(self) -> None:
        self.ask(new_key(), "miss", "REQUEST")


class HitUser(PolicyRunner):
    """Asks for what is warm."""

    @task
    def ask_warm(self) -> None:
        self.hit()


class MissUser(PolicyRunner):
    """Asks for what nobody asked for before."""

    @task
    def ask_new(self) -> None:
        self.miss()


class MixedUser(PolicyRunner):
    """Six hits to four misses."""

    @task
    def ask_either(self) -> None:
        if random.random() < HIT_SHARE:
            self.hit()
        else:
            self.miss()
