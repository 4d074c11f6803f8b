"""Money of the simulated world's countries, and what it is worth: made up, but of the right size.

By default the world pays in four currencies of like worth. With `local_money` each country pays in
its own, in its own units: then amounts can be compared only by a table of rates, which
`waxwing simulate --rates FILE` writes.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from features.simulate import geography as geo

__all__ = ["COUNTRY_LOCAL", "LOCAL_CURRENCIES", "local_amount", "rate_rows", "rates_on"]

_WORTH = {
    "EUR": 1.0, "GBP": 1.15, "CHF": 1.05, "PLN": 0.23, "CZK": 0.04, "SEK": 0.088, "DKK": 0.134,
    "NOK": 0.086, "RON": 0.2, "TRY": 0.024, "AED": 0.25, "INR": 0.0105, "SGD": 0.68, "JPY": 0.0061,
    "KRW": 0.00062, "AUD": 0.56, "NZD": 0.51, "USD": 0.92, "CAD": 0.65, "MXN": 0.047, "BRL": 0.16,
    "ARS": 0.0008, "ZAR": 0.049, "NGN": 0.0006, "KES": 0.0071,
}  # fmt: skip
"""About what one unit was worth in euros in 2025, to two digits: public facts, rounded."""

_WHOLE = ("JPY", "KRW")
"""Currencies without a smaller coin (ISO 4217)."""

_COUNTRY = {
    "GB": "GBP", "CH": "CHF", "PL": "PLN", "CZ": "CZK", "SE": "SEK", "DK": "DKK", "NO": "NOK",
    "RO": "RON", "TR": "TRY", "AE": "AED", "IN": "INR", "SG": "SGD", "JP": "JPY", "KR": "KRW",
    "AU": "AUD", "NZ": "NZD", "US": "USD", "CA": "CAD", "MX": "MXN", "BR": "BRL", "AR": "ARS",
    "ZA": "ZAR", "NG": "NGN", "KE": "KES",
}  # fmt: skip
"""Country -> its currency; all others have the euro."""

LOCAL_CURRENCIES = tuple(_WORTH)
"""Currencies of the world with local money, the euro first."""

COUNTRY_LOCAL = np.array(
    [LOCAL_CURRENCIES.index(_COUNTRY.get(country, "EUR")) for country in geo.COUNTRIES], np.int32
)
"""Index into LOCAL_CURRENCIES of each country."""

_SWING = 0.03
"""How far a rate strays from its level; chosen: a few per cent in some weeks, as the majors do."""

_DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1)


def rates_on(day: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What one unit of each currency is worth in euros.

    Parameters
    ----------
    day : int64 (n,), days since 1970-01-01

    Returns
    -------
    float64 (n, currencies), to six digits; a function of the day alone
    """
    number = np.arange(len(LOCAL_CURRENCIES))
    phase = 2 * np.pi * day[:, None] / (23.0 + 5.0 * number) + number
    strayed = np.array(list(_WORTH.values())) * (1.0 + _SWING * np.sin(phase))
    strayed[:, 0] = 1.0
    digits = 10.0 ** (5 - np.floor(np.log10(strayed)))
    return np.asarray(np.round(strayed * digits) / digits)


def rate_rows(start_us: int, end_us: int) -> list[tuple[date, str, float]]:
    """(day, currency, rate) of all days of a span of event time and all currencies but the euro."""
    days = np.arange(start_us // _DAY_US, -(-end_us // _DAY_US))
    return [
        (_EPOCH + timedelta(days=day), name, rate)
        for day, rates in zip(days.tolist(), rates_on(days).tolist(), strict=True)
        for name, rate in zip(LOCAL_CURRENCIES[1:], rates[1:], strict=True)
    ]


def local_amount(
    euros: npt.NDArray[np.float64],
    currency: npt.NDArray[np.int32],
    time_us: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Amounts in the money of the place, in its smallest coins, float64 (n,).

    Parameters
    ----------
    euros : float64 (n,), EUR
    currency : int32 (n,), index into LOCAL_CURRENCIES
    time_us : int64 (n,), event time
    """
    days, at = np.unique(time_us // _DAY_US, return_inverse=True)
    amount = euros / rates_on(days)[at, currency]
    whole = np.isin(currency, [LOCAL_CURRENCIES.index(name) for name in _WHOLE])
    return np.asarray(np.maximum(np.round(amount, 2), 0.01) * ~whole + np.ceil(amount) * whole)
