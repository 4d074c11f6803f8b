"""Who lives in the simulated world: people with homes and habits, cards, merchants, hosts.

Made once from the population seed and never changed: what changes with time (journeys, new phones)
is a function of who and when. The traffic seed is another one, so that detectors can be trained on
one year of these people's lives and tried on another.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from features.keys import hash_columns, hash_strings
from features.simulate import geography as geo
from features.simulate.chance import generator, key_of, mix64, pick, unit, weighted_table
from features.simulate.strings import hex_names, ip_names

__all__ = [
    "ATTACKER_NAMES",
    "CATEGORIES",
    "DAY_US",
    "HOUR_US",
    "METRICS",
    "PARTITIONS",
    "Infrastructure",
    "Population",
    "infrastructure",
    "population",
]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

PARTITIONS = 32
"""Partitions of a topic, as the issue asks; an event's partition is its key's hash modulo this."""

ATTACKER_NAMES = 16_384
"""Device and address names kept for attackers of one traffic seed; chosen: at the default rate they
come round after some years."""

ADDRESSES_PER_COUNTRY = 64
"""Carrier addresses that phones of a country share; chosen: enough sharing to be a nuisance."""

ADDRESSES_PER_CITY = 32
"""Hotel and café addresses of a city."""

CATEGORIES: tuple[tuple[str, float, float], ...] = (
    # name, offset of the logarithm of the amount, its own spread
    ("grocery", 0.0, 0.45),
    ("restaurant", 0.1, 0.40),
    ("fuel", 0.5, 0.25),
    ("transit", -1.6, 0.40),
    ("health", 0.2, 0.55),
    ("clothing", 0.7, 0.55),
    ("home", 0.9, 0.65),
    ("electronics", 1.4, 0.65),
    ("entertainment", -0.1, 0.45),
    ("digital", -1.0, 0.50),
    ("marketplace", 0.4, 0.75),
    ("gaming", -0.6, 0.60),
    ("utilities", 0.8, 0.35),
    ("travel", 1.6, 0.60),
    ("cash", 1.0, 0.40),
)
"""Merchant categories; offsets are against the card's own level, chosen so that the median payment
of the default population is about 23 currency units and one in a hundred is above 350."""

_CATEGORY = {name: i for i, (name, _, _) in enumerate(CATEGORIES)}
_AT_TILL = (
    "grocery",
    "restaurant",
    "fuel",
    "transit",
    "health",
    "clothing",
    "home",
    "electronics",
    "entertainment",
)
_AT_TILL_WEIGHT = np.array([0.30, 0.20, 0.08, 0.12, 0.07, 0.08, 0.05, 0.03, 0.07])
_ONLINE = ("digital", "marketplace", "gaming", "utilities", "travel", "clothing", "electronics")
_ONLINE_WEIGHT = np.array([0.25, 0.28, 0.12, 0.10, 0.06, 0.12, 0.07])

_HABITS = 6
_FAVOURITES_TILL = 5
_FAVOURITES_ONLINE = 3


def _habit_weights() -> npt.NDArray[np.float64]:
    """Relative activity of each habit by local hour of the week, float64 (6, 168), Monday first."""
    hour = np.arange(24)

    def bump(centre: float, width: float) -> npt.NDArray[np.float64]:
        away = np.minimum(np.abs(hour - centre), 24 - np.abs(hour - centre))
        return np.asarray(np.exp(-0.5 * (away / width) ** 2))

    days = (
        np.stack(
            [
                bump(8, 1.2) + bump(12.5, 1.2) + 1.2 * bump(18, 1.8),  # commuter
                1.2 * bump(12.5, 1.5) + bump(19, 2.0),  # office
                0.3 * bump(13, 2.0) + 1.3 * bump(20.5, 2.2),  # evening
                0.4 * bump(16, 2.0) + 1.0 * bump(23.5, 2.5),  # night
                1.2 * bump(10.5, 2.0) + 0.8 * bump(16, 2.0),  # at home
                0.8 * bump(11, 3.0) + 0.8 * bump(17, 3.0),  # spread over the day
            ]
        )
        + 0.03
    )
    weekend = np.array([0.7, 0.6, 1.2, 1.5, 0.9, 1.4])
    week = np.tile(days, (1, 7))
    week[:, 5 * 24 :] *= weekend[:, None]
    return np.asarray(week / week.mean(axis=1, keepdims=True))


def _with_null(names: list[pl.Series]) -> pl.Series:
    """Pools one after another and a null at the end, so that index -1 is null."""
    return pl.concat([*names, pl.Series([None], dtype=pl.String)])


class Population:
    """People, cards and merchants as arrays; an entity is its index.

    Parameters
    ----------
    seed : of the population
    cards : how many cards; 0.85 as many users, a tenth as many merchants
    """

    def __init__(self, seed: int, cards: int) -> None:
        rng = generator(seed, key_of("population"))
        self.seed, self.cards = seed, cards
        self.users = max(1, round(0.85 * cards))
        self._people(rng)
        self._cards(rng)
        self._merchants(rng)
        self._names()

    def _people(self, rng: np.random.Generator) -> None:
        """Home, habit, addresses and devices of each user."""
        n = self.users
        weight = geo.CITY_WEIGHT / geo.CITY_WEIGHT.sum()
        self.user_city = rng.choice(len(weight), n, p=weight).astype(np.int32)
        self.user_latitude = geo.CITY_LATITUDE[self.user_city] + rng.normal(0, 0.08, n)
        self.user_longitude = geo.CITY_LONGITUDE[self.user_city] + rng.normal(0, 0.10, n)
        self.user_country = geo.CITY_COUNTRY[self.user_city]
        self.user_habit = rng.integers(0, _HABITS, n).astype(np.int32)
        self.user_second_device = rng.random(n) < 0.4
        self.user_phase = rng.random(n)
        self.user_mobile = rng.beta(1.5, 4.0, n)
        self.user_forgetful = rng.beta(1.2, 40.0, n)
        self.user_method = rng.dirichlet([5.0, 1.8, 2.4], n).cumsum(axis=1)[:, :2]

    def _cards(self, rng: np.random.Generator) -> None:
        """Holder, spending and activity of each card, and tables to draw cards by hour."""
        n = self.cards
        second = rng.integers(0, self.users, n - self.users)
        self.card_user = np.concatenate([np.arange(self.users), second]).astype(np.int32)
        activity = np.clip(rng.lognormal(0.0, 0.6, n), 0.15, 5.0)
        self.card_level = rng.normal(3.0, 0.45, n)
        self.card_spread = rng.uniform(0.15, 0.45, n)
        self.card_online = rng.beta(2.0, 3.5, n)
        self.card_flaky = rng.random(n) < 0.02
        offsets, zone = np.unique(
            geo.CITY_OFFSET_H[self.user_city[self.card_user]], return_inverse=True
        )
        kind = zone * _HABITS + self.user_habit[self.card_user]
        kinds = len(offsets) * _HABITS
        order = np.argsort(kind, kind="stable")
        tables = [
            weighted_table(members, activity[members] / activity.mean(), 8.0)
            if len(members)
            else np.zeros(0, np.int32)
            for members in np.split(order, np.searchsorted(kind[order], np.arange(1, kinds)))
        ]
        self.card_table = np.concatenate(tables)
        self.kind_size = np.array([len(t) for t in tables], np.int64)
        self.kind_start = np.cumsum(self.kind_size) - self.kind_size
        week = _habit_weights()
        hours = np.arange(168)[:, None]
        local = (
            np.floor(hours + np.repeat(offsets, _HABITS)[None, :]).astype(int) % 168
        )  # (168, kinds)
        share = self.kind_size * week[np.tile(np.arange(_HABITS), len(offsets))[None, :], local]
        self.kind_cdf = np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True)

    def _merchants(self, rng: np.random.Generator) -> None:
        """Tills, cash machines and shops online; each card's favourites among them."""
        cities = len(geo.CITY_WEIGHT)
        tills = max(8 * cities, self.cards // 14)
        machines = max(2 * cities, self.cards // 200)
        shops = max(60, self.cards // 40)
        weight = geo.CITY_WEIGHT / geo.CITY_WEIGHT.sum()

        def sites(n: int, least: int) -> npt.NDArray[np.int32]:
            free = rng.choice(cities, n - least * cities, p=weight)
            return np.sort(np.concatenate([np.repeat(np.arange(cities), least), free])).astype(
                np.int32
            )

        till_city, machine_city = sites(tills, 6), sites(machines, 1)
        shop_city = rng.choice(cities, shops, p=weight).astype(np.int32)
        self.merchants = tills + machines + shops
        self.merchant_city = np.concatenate([till_city, machine_city, shop_city])
        self.merchant_country = geo.CITY_COUNTRY[self.merchant_city]
        self.merchant_category = np.concatenate(
            [
                np.array([_CATEGORY[c] for c in _AT_TILL])[
                    rng.choice(len(_AT_TILL), tills, p=_AT_TILL_WEIGHT)
                ],
                np.full(machines, _CATEGORY["cash"]),
                np.array([_CATEGORY[c] for c in _ONLINE])[
                    rng.choice(len(_ONLINE), shops, p=_ONLINE_WEIGHT)
                ],
            ]
        ).astype(np.int32)
        n = self.merchants
        self.merchant_latitude = np.round(
            geo.CITY_LATITUDE[self.merchant_city] + rng.normal(0, 0.06, n), 4
        )
        self.merchant_longitude = np.round(
            geo.CITY_LONGITUDE[self.merchant_city] + rng.normal(0, 0.08, n), 4
        )
        size = 1.0 / (1.0 + rng.permutation(n) % 40) ** 0.8
        self.till_table, self.till_start, self.till_size = self._by_city(np.arange(tills), size)
        self.machine_table, self.machine_start, self.machine_size = self._by_city(
            np.arange(tills, tills + machines), size
        )
        self.first_shop = tills + machines
        rank = 1.0 / (1.0 + np.arange(shops)) ** 0.9
        self.shop_table = weighted_table(np.arange(self.first_shop, n), rank, 16.0)
        cards = self.cards
        city = np.repeat(self.user_city[self.card_user], _FAVOURITES_TILL)
        at_till = pick(rng, self.till_table, self.till_start[city], self.till_size[city], len(city))
        online = pick(rng, self.shop_table, 0, len(self.shop_table), cards * _FAVOURITES_ONLINE)
        self.favourites = np.concatenate(
            [at_till.reshape(cards, _FAVOURITES_TILL), online.reshape(cards, _FAVOURITES_ONLINE)],
            axis=1,
        ).ravel()

    def _by_city(
        self, members: npt.NDArray[np.integer], size: npt.NDArray[np.floating]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A table to draw merchants of a city from: entries, and start and length of each city."""
        table = weighted_table(members, size[members], 8.0)
        counts = np.bincount(self.merchant_city[table], minlength=len(geo.CITY_WEIGHT)).astype(
            np.int64
        )
        return table, np.cumsum(counts) - counts, counts

    def _names(self) -> None:
        """Pools of strings, gathered by index when a frame is made."""
        base = np.int64(mix64(np.array([self.seed + 1], np.uint64))[0] & np.uint64(0x3FFFFFFF))
        self.card_names = hex_names("c-", base + np.arange(self.cards))
        self.user_names = hex_names("u-", base + np.arange(self.users))
        self.merchant_names = hex_names("m-", base + np.arange(self.merchants))
        self.category_names = pl.Series([name for name, _, _ in CATEGORIES])
        self.category_offset = np.array([offset for _, offset, _ in CATEGORIES])
        self.category_spread = np.array([spread for _, _, spread in CATEGORIES])
        self.country_names = _with_null([pl.Series(geo.COUNTRIES)])
        self.currency_names = pl.Series(geo.CURRENCIES)
        self.country_currency = np.array(geo.COUNTRY_CURRENCY, np.int32)
        self.devices = 3 * self.users
        self.device_base = hex_names("d-", base % (1 << 28) + np.arange(self.devices))
        countries, cities = len(geo.COUNTRIES), len(geo.CITY_WEIGHT)
        self.address_carrier = self.users
        self.address_public = self.users + countries * ADDRESSES_PER_COUNTRY
        self.addresses = self.address_public + cities * ADDRESSES_PER_CITY
        numbers = np.arange(self.addresses)
        self.address_base = pl.concat(
            [
                ip_names(81, numbers[: self.users]),
                ip_names(100, numbers[self.users : self.address_public]),
                ip_names(193, numbers[self.address_public :]),
            ]
        )
        self.card_partition = (hash_strings(self.card_names) % np.uint64(PARTITIONS)).astype(
            np.int32
        )
        self.user_partition = (hash_strings(self.user_names) % np.uint64(PARTITIONS)).astype(
            np.int32
        )

    def pools(self, seed: int) -> tuple[pl.Series, pl.Series]:
        """Device and address names with those of the attackers of traffic seed `seed`, null last.

        An attacker's name number j has index `devices + j` and `addresses + j`.
        """
        numbers = np.arange(ATTACKER_NAMES)
        first = (seed * ATTACKER_NAMES) % (1 << 30)
        devices = hex_names("d-", (1 << 31) + first + numbers)
        addresses = ip_names(45, (seed * ATTACKER_NAMES + numbers) % (1 << 24))
        return _with_null([self.device_base, devices]), _with_null([self.address_base, addresses])

    def active_cards(
        self, rng: np.random.Generator, n: int, start_us: int
    ) -> npt.NDArray[np.int32]:
        """`n` cards drawn by their activity in the hour of `start_us`, int32 (n,)."""
        hour = (start_us // HOUR_US + 3 * 24) % 168  # 1970-01-01 was a Thursday
        kind = np.searchsorted(self.kind_cdf[hour], rng.random(n), side="right")
        kind = np.minimum(kind, len(self.kind_size) - 1)
        return pick(rng, self.card_table, self.kind_start[kind], self.kind_size[kind], n)

    def device_at(
        self,
        user: npt.NDArray[np.integer],
        second: npt.NDArray[np.bool_],
        time_us: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Device a user holds, int64 (n,); the phone changes every 180 days, on a day of one's
        own."""
        turn = np.floor(time_us / (180.0 * DAY_US) + self.user_phase[user]).astype(np.int64) % 2
        return 3 * user.astype(np.int64) + np.where(second & self.user_second_device[user], 2, turn)


METRICS: tuple[str, ...] = ("cpu", "memory", "latency_ms", "requests_per_s", "errors_per_s", "disk")
"""Metrics of every host, sampled together."""

_SERVICES = (
    "checkout",
    "ledger",
    "auth",
    "search",
    "catalog",
    "gateway",
    "mailer",
    "reports",
    "risk",
    "inventory",
    "billing",
    "profile",
)

HOSTS_AT_DEFAULT = 15
"""Hosts at the default of 2 events/s: three services of five, each sampled every 180 s."""

RESTART_SAMPLES = 1.1
RESTART_H_MAX = 0.1
"""How long a host is away when it restarts, in intervals of its samples, and at the most. Chosen:
one sample is missed, now and then two, where they are not far apart."""

NIGHT_SHARE = 0.3
"""Share of a service's lines that its job writes while it runs at night."""

TEMPLATES = 24
RELEASE_TEMPLATES = 64
ATTACK_TEMPLATES = 4_096

_SAYINGS: tuple[tuple[str, str, float, int], ...] = (
    # template, level, typical duration in ms (0 none), status (0 none)
    ("GET /{} handled in {} ms", "info", 18.0, 200),
    ("POST /{} handled in {} ms", "info", 45.0, 200),
    ("cache hit for key {}", "debug", 0.0, 0),
    ("query on table {} took {} ms", "info", 9.0, 0),
    ("session {} opened", "info", 0.0, 0),
    ("session {} closed", "info", 0.0, 0),
    ("cache miss for key {}", "debug", 0.0, 0),
    ("call to {} took {} ms", "info", 60.0, 200),
    ("message {} published to {}", "info", 3.0, 0),
    ("message {} consumed from {}", "info", 5.0, 0),
    ("retrying call to {}, attempt {}", "warning", 0.0, 0),
    ("GET /{} not found", "warning", 6.0, 404),
    ("health check passed", "debug", 1.0, 200),
    ("slow query on table {}: {} ms", "warning", 700.0, 0),
    ("token of user {} refreshed", "info", 4.0, 200),
    ("input {} rejected: {}", "warning", 5.0, 400),
    ("batch {} of {} rows written", "info", 120.0, 0),
    ("pool of connections at {} of {}", "warning", 0.0, 0),
    ("call to {} failed: {}", "error", 900.0, 502),
    ("time-out after {} ms waiting for {}", "error", 3000.0, 504),
    ("configuration reloaded", "info", 0.0, 0),
    ("rate limit reached for client {}", "warning", 1.0, 429),
    ("unhandled exception in {}: {}", "error", 30.0, 500),
    ("leader of {} is now {}", "info", 0.0, 0),
)


class Infrastructure:
    """Services, their hosts and what they log; its size follows the event rate.

    Parameters
    ----------
    seed : of the population
    metrics_per_s : samples per second of all hosts together
    """

    def __init__(self, seed: int, metrics_per_s: float) -> None:
        rng = generator(seed, key_of("infrastructure"))
        scrapes_per_s = max(metrics_per_s, 1e-6) / len(METRICS)
        scale = max(1.0, metrics_per_s / 0.5)
        interval_s = max(10.0, 180.0 / np.sqrt(scale))
        self.hosts: int = max(HOSTS_AT_DEFAULT, round(scrapes_per_s * interval_s))
        self.services = min(
            self.hosts // 5, max(3, round(3 * np.sqrt(self.hosts / HOSTS_AT_DEFAULT)))
        )
        self.cell_us: int = max(1, round(1e6 / scrapes_per_s))
        """Microseconds between two scrapes of any hosts."""
        self.interval_us: int = self.cell_us * self.hosts
        """Microseconds between two samples of one series."""
        self.host_service = (np.arange(self.hosts) * self.services // self.hosts).astype(np.int32)
        self.service_start = np.searchsorted(self.host_service, np.arange(self.services)).astype(
            np.int64
        )
        self.service_size = np.bincount(self.host_service, minlength=self.services).astype(np.int64)
        self.scrape_order = rng.permutation(self.hosts).astype(np.int32)
        self._levels(rng)
        self._logs(rng)
        self._names()

    def _levels(self, rng: np.random.Generator) -> None:
        """Usual levels of each host's metrics and the phases of its rhythms."""
        services, hosts = self.services, self.hosts
        self.service_phase_h = rng.uniform(-3.0, 3.0, services)
        self.service_phase = rng.uniform(0.0, 2.0 * np.pi, (services, 3))
        self.host_phase = rng.uniform(0.0, 2.0 * np.pi, hosts)
        own = rng.normal(1.0, 0.05, hosts)
        of_service = self.host_service
        self.cpu_idle = rng.uniform(8, 16, services)[of_service] * own
        self.cpu_slope = rng.uniform(30, 50, services)[of_service] * own
        self.memory_base = rng.uniform(35, 55, services)[of_service] * own
        self.latency_base = np.exp(rng.uniform(np.log(8), np.log(120), services))[of_service] * own
        self.requests_peak = (
            np.exp(rng.uniform(np.log(40), np.log(600), services))[of_service] * own
        )
        self.error_share = np.exp(rng.uniform(np.log(0.002), np.log(0.01), services))[of_service]
        self.disk_phase = rng.random(hosts)
        self.disk_days = rng.uniform(12, 40, hosts)

    def _logs(self, rng: np.random.Generator) -> None:
        """How much each service logs and which templates."""
        services = self.services
        weight = 1.0 / (1.0 + np.arange(services)) ** 0.35
        self.service_log_share = weight / weight.sum()
        self.service_table = weighted_table(np.arange(services), weight, 64.0)
        rank = 1.0 / (1.0 + np.arange(TEMPLATES)) ** 1.1
        rank[[level == "error" for _, level, _, _ in _SAYINGS]] *= (
            0.25  # errors: 0.8 % of all lines
        )
        self.template_table = weighted_table(np.arange(TEMPLATES), rank, 60.0)
        levels = ("debug", "info", "warning", "error", "fatal")
        self.level_names = pl.Series(levels)
        self.template_level = np.array(
            [levels.index(level) for _, level, _, _ in _SAYINGS], np.int32
        )
        typical = np.array([ms for _, _, ms, _ in _SAYINGS])
        own = rng.normal(0.0, 0.35, (services, TEMPLATES))
        with np.errstate(divide="ignore"):
            level = np.log(typical)[None, :] + own
        self.template_duration = np.where(np.isfinite(level), level, np.nan)
        self.template_status = np.array([status for _, _, _, status in _SAYINGS], np.int32)
        counts = np.bincount(self.template_table, minlength=TEMPLATES) / len(self.template_table)
        self.timed_share = float(counts[typical > 0].sum())
        """Share of log lines that report a duration."""

    def _names(self) -> None:
        """Pools of strings; templates are those of each service, of releases, then of attacks."""
        services = [
            _SERVICES[i % len(_SERVICES)]
            + (f"-{i // len(_SERVICES) + 1}" if i >= len(_SERVICES) else "")
            for i in range(self.services)
        ]
        self.service_names = pl.Series(services)
        self.host_names = pl.Series(
            [
                f"{services[s]}-{i - int(self.service_start[s]):03d}"
                for i, s in enumerate(self.host_service)
            ]
        )
        self.metric_names = pl.Series(METRICS)
        said = [f"{s}: {text}" for s in services for text, _, _, _ in _SAYINGS]
        release = [
            f"{s}: release {k}: {{}} set to {{}}"
            for s in services
            for k in range(RELEASE_TEMPLATES)
        ]
        self.first_release_template = len(said)
        self.first_attack_template = len(said) + len(release)
        odd = np.char.mod("%04x", (np.arange(ATTACK_TEMPLATES) * 40503) % 65536)
        attack = [f"assertion {code} violated in {{}}: expected {{}}, got {{}}" for code in odd]
        self.template_names = pl.Series(said + release + attack)
        frame = pl.DataFrame({"host": self.host_names})
        self.host_partition = (hash_strings(self.host_names) % np.uint64(PARTITIONS)).astype(
            np.int32
        )
        self._night_hosts()
        partitions = [
            (
                hash_columns(frame.with_columns(metric=pl.lit(name)), ("host", "metric"))
                % np.uint64(PARTITIONS)
            ).astype(np.int32)
            for name in METRICS
        ]
        self.series_partition = np.stack(partitions, axis=1).ravel()  # host * len(METRICS) + metric

    def _night_hosts(self) -> None:
        """One more host a service, for the job it runs at night; it sends lines and no metrics."""
        names = pl.Series([f"{service}-night" for service in self.service_names])
        self.host_names = pl.concat([self.host_names, names])
        partition = (hash_strings(names) % np.uint64(PARTITIONS)).astype(np.int32)
        self.host_partition = np.concatenate((self.host_partition, partition))
        services = np.arange(self.services, dtype=np.int32)
        self.host_service = np.concatenate((self.host_service, services))
        self.host_phase = np.concatenate((self.host_phase, np.zeros(self.services)))

    def at_night(
        self, seed: int, host: npt.NDArray[np.int32], time_us: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """The hosts that write lines, int32 (n,): some of a service's are its job's at night.

        The job begins at an hour of the service's own, up to ten minutes later by chance, and runs
        for twenty.
        """
        service, day = self.host_service[host], time_us // DAY_US
        begin_us = HOUR_US * (1 + service.astype(np.int64) % 4)
        begin_us += (unit(seed ^ key_of("night"), service, day) * HOUR_US / 6).astype(np.int64)
        since_us = time_us % DAY_US - begin_us
        runs = (since_us >= 0) & (since_us < HOUR_US // 3)
        runs &= unit(seed ^ key_of("night line"), host, time_us) < NIGHT_SHARE
        found: npt.NDArray[np.int32] = np.where(runs, self.hosts + service, host).astype(np.int32)
        return found

    def restarting(
        self, seed: int, host: npt.NDArray[np.integer], time_us: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Whether a host is away because its release is being rolled out, bool (n,).

        The hosts of the service restart one after another while it lasts (see `deploying`).
        """
        service = self.host_service[host]
        drawn = unit(seed ^ key_of("deploy"), service, time_us // (4 * HOUR_US))
        nth = (host - self.service_start[service] + 0.5) / self.service_size[service]
        begin_h = drawn * (12.0 * 3.5) + 0.25 * nth
        within_h = (time_us % (4 * HOUR_US)) / HOUR_US
        lasts_h = min(RESTART_SAMPLES * self.interval_us / HOUR_US, RESTART_H_MAX)
        away = (within_h >= begin_h) & (within_h < begin_h + lasts_h)
        found: npt.NDArray[np.bool_] = (drawn < 1.0 / 12.0) & away & (host < self.hosts)
        return found

    def deploying(
        self, seed: int, service: npt.NDArray[np.integer], time_us: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Whether a new release of the service is being rolled out, bool (n,).

        One stretch of four hours in twelve has one, of 15 minutes: brief genuine trouble.
        """
        stretch = time_us // (4 * HOUR_US)
        drawn = unit(seed ^ key_of("deploy"), service, stretch)
        begin = drawn * (12.0 * 3.5)  # h, only where drawn < 1/12: [0, 3.5)
        within = (time_us % (4 * HOUR_US)) / HOUR_US
        return (drawn < 1.0 / 12.0) & (within >= begin) & (within < begin + 0.25)


@lru_cache(maxsize=4)
def population(seed: int, cards: int) -> Population:
    """The population of a seed, made once per process."""
    return Population(seed, cards)


@lru_cache(maxsize=4)
def infrastructure(seed: int, metrics_per_s: float) -> Infrastructure:
    """The infrastructure of a seed, made once per process."""
    return Infrastructure(seed, metrics_per_s)
