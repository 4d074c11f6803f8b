"""Places of the simulated world: cities with position, country and offset from UTC.

Read by the population (homes, merchants), by journeys and by attackers. Positions and offsets are
public facts, rounded to 0.01 degree; standard time all year, which is near enough for habits.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "CITY_COUNTRY",
    "CITY_LATITUDE",
    "CITY_LONGITUDE",
    "CITY_OFFSET_H",
    "CITY_WEIGHT",
    "COUNTRIES",
    "CURRENCIES",
    "COUNTRY_CURRENCY",
]

_CITIES: tuple[tuple[str, float, float, float, float], ...] = (
    # country, latitude, longitude, hours from UTC, weight (about millions of inhabitants)
    ("DE", 52.52, 13.40, 1, 3.7),
    ("DE", 48.14, 11.58, 1, 1.5),
    ("DE", 53.55, 9.99, 1, 1.8),
    ("DE", 50.94, 6.96, 1, 1.1),
    ("FR", 48.86, 2.35, 1, 6.0),
    ("FR", 45.76, 4.84, 1, 1.7),
    ("FR", 43.30, 5.37, 1, 1.6),
    ("GB", 51.51, -0.13, 0, 6.5),
    ("GB", 53.48, -2.24, 0, 2.5),
    ("GB", 55.95, -3.19, 0, 0.6),
    ("ES", 40.42, -3.70, 1, 3.3),
    ("ES", 41.39, 2.17, 1, 2.2),
    ("IT", 41.90, 12.50, 1, 2.8),
    ("IT", 45.46, 9.19, 1, 2.0),
    ("NL", 52.37, 4.90, 1, 1.2),
    ("BE", 50.85, 4.35, 1, 1.2),
    ("AT", 48.21, 16.37, 1, 1.9),
    ("CH", 47.38, 8.54, 1, 1.0),
    ("PL", 52.23, 21.01, 1, 1.8),
    ("CZ", 50.08, 14.44, 1, 1.3),
    ("SE", 59.33, 18.07, 1, 1.0),
    ("DK", 55.68, 12.57, 1, 0.8),
    ("NO", 59.91, 10.75, 1, 0.7),
    ("FI", 60.17, 24.94, 2, 0.7),
    ("PT", 38.72, -9.14, 0, 1.0),
    ("IE", 53.35, -6.26, 0, 0.9),
    ("GR", 37.98, 23.73, 2, 1.2),
    ("RO", 44.43, 26.10, 2, 1.2),
    ("TR", 41.01, 28.98, 3, 3.0),
    ("AE", 25.20, 55.27, 4, 1.0),
    ("IN", 19.08, 72.88, 5.5, 3.0),
    ("IN", 28.61, 77.21, 5.5, 3.0),
    ("SG", 1.35, 103.82, 8, 1.5),
    ("JP", 35.68, 139.69, 9, 3.5),
    ("KR", 37.57, 126.98, 9, 2.5),
    ("AU", -33.87, 151.21, 10, 1.8),
    ("NZ", -36.85, 174.76, 12, 0.6),
    ("US", 40.71, -74.01, -5, 5.0),
    ("US", 41.88, -87.63, -6, 2.7),
    ("US", 34.05, -118.24, -8, 3.8),
    ("US", 29.76, -95.37, -6, 2.3),
    ("US", 47.61, -122.33, -8, 0.8),
    ("US", 25.76, -80.19, -5, 1.0),
    ("CA", 43.65, -79.38, -5, 2.0),
    ("CA", 49.28, -123.12, -8, 0.7),
    ("MX", 19.43, -99.13, -6, 3.0),
    ("BR", -23.55, -46.63, -3, 4.0),
    ("BR", -22.91, -43.17, -3, 2.5),
    ("AR", -34.60, -58.38, -3, 2.0),
    ("ZA", -33.92, 18.42, 2, 1.2),
    ("NG", 6.52, 3.38, 1, 1.5),
    ("KE", -1.29, 36.82, 3, 0.9),
)

COUNTRIES: tuple[str, ...] = tuple(dict.fromkeys(city[0] for city in _CITIES))
"""ISO 3166 codes of all countries with a city, in the order of first appearance."""

CURRENCIES: tuple[str, ...] = ("EUR", "USD", "GBP", "CHF")
"""Currencies of the simulated world. Chosen few and of like worth, so that a journey does not
change the size of amounts a hundredfold where nothing converts them; `exchange` has all."""

_EUR = {"DE", "FR", "ES", "IT", "NL", "BE", "AT", "PT", "IE", "GR", "FI"}
COUNTRY_CURRENCY: tuple[int, ...] = tuple(
    0 if c in _EUR else {"GB": 2, "CH": 3}.get(c, 1) for c in COUNTRIES
)
"""Index into CURRENCIES of each country."""

CITY_COUNTRY = np.array([COUNTRIES.index(city[0]) for city in _CITIES], np.int32)
CITY_LATITUDE = np.array([city[1] for city in _CITIES])
CITY_LONGITUDE = np.array([city[2] for city in _CITIES])
CITY_OFFSET_H = np.array([city[3] for city in _CITIES])
CITY_WEIGHT = np.array([city[4] for city in _CITIES])
