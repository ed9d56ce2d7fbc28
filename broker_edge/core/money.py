"""What a call costs and what may be spent in a day. Amounts are whole millionths of a currency unit: exact, and quick to add."""

from __future__ import annotations

import re
from decimal import Decimal, DecimalException
from typing import Final

import msgspec

from broker_edge.core.spec import ROOT, Amount
from broker_edge.core.spec import Budget as BudgetWire
from broker_edge.core.template import invalid

MICROS: Final = 1_000_000
NO_CURRENCY: Final = "X" * 3  # ISO 4217's code for transactions without a currency
_MOST: Final = 10**9  # units: a sum of millions of calls stays within 64 bits
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


class Price(msgspec.Struct, frozen=True):
    """What one call costs."""

    micros: int
    currency: str


class Budget(msgspec.Struct, frozen=True):
    """What a source may spend in a day (UTC): an amount, a number of calls, or both."""

    micros: int | None = None
    calls: int | None = None


def compile_price(wire: Amount | float | str | None) -> Price | None:
    """Raises `CallerError` INVALID_DATA_SOURCE; so does `compile_budget`."""
    member = f"{ROOT}.cost_per_call"
    if wire is None:
        return None
    amount, currency = (wire.amount, wire.currency) if isinstance(wire, Amount) else (wire, None)
    if amount is None:
        raise invalid(f"{member}.amount", "is required")
    if currency is not None and not _CURRENCY.fullmatch(currency):
        raise invalid(f"{member}.currency", "must be three capital letters (ISO 4217)")
    return Price(micros_of(amount, member), currency or NO_CURRENCY)


def compile_budget(wire: BudgetWire | float | str | None, price: Price | None) -> Budget | None:
    member = f"{ROOT}.budget"
    if wire is None:
        return None
    given = wire if isinstance(wire, BudgetWire) else BudgetWire(amount=wire)
    if given.per not in (None, "day"):
        raise invalid(f"{member}.per", "must be day")
    if given.amount is None and given.calls is None:
        raise invalid(member, "must say an amount or a number of calls")
    if given.amount is not None and (price is None or not price.micros):
        raise invalid(member, "is an amount, so that cost_per_call must say what a call costs")
    if given.calls is not None and not 0 <= given.calls <= _MOST:
        raise invalid(f"{member}.calls", f"must be from 0 to {_MOST}")
    return Budget(None if given.amount is None else micros_of(given.amount, f"{member}.amount"), given.calls)


def micros_of(amount: float | str, member: str) -> int:
    """A decimal, as text or as a JSON number, in millionths; more than six places are refused rather than rounded."""
    try:
        micros = Decimal(str(amount)) * MICROS
    except DecimalException:
        raise invalid(member, "must be a decimal number") from None
    if not micros.is_finite() or not 0 <= micros <= _MOST * MICROS or micros != int(micros):
        raise invalid(member, f"must be from 0 to {_MOST} with six decimal places at most")
    return int(micros)


def decimal_text(micros: int) -> str:
    """As people write it: `3.50`, two places at least."""
    whole, rest = divmod(abs(micros), MICROS)
    places = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}{whole}.{places}"
