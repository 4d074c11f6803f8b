"""Files of the user's own: what they declare, and every way in which they can be wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflows.cli.main import main
from dataflows.settings import load
from features import catalog as catalog_module
from features import columns, decode, events, registry, repeats
from features.catalog import catalog, declared_features
from features.columns import Columns, real_names
from features.emptied import timed_names
from features.engine import OfflineEngine
from features.errors import ConfigError
from features.events import built_in_types, event_code, event_types
from features.events.avro import avro_schema
from features.layout import layout_array
from features.operations import OPERATIONS
from features.reference import reference
from features.spec import Feature, place_of
from features.units import UNITS, units_of
from tests.unit.test_catalog import GOOD, faults

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-features.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))

NAN = float("nan")

CACHES = (
    events.event_types,
    catalog_module.catalog,
    catalog_module.declared_features,
    columns._derived,
    columns.real_names,
    columns.flag_names,
    columns.key_names,
    columns.has_real,
    columns.has_key,
    columns.unit_of,
    columns.meaning_of,
    repeats._salt,
    events.event_code,
)
"""What a process keeps of event types and features; here it is made several times."""


def forget() -> None:
    registry.forget_own()
    for made in CACHES:
        made.cache_clear()
    for name in vars(decode).values():
        if hasattr(name, "cache_clear"):
            name.cache_clear()


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Declares files (name -> text) by both settings; all faults."""
    monkeypatch.chdir(tmp_path)

    def declare(
        files: dict[str, str] | None = None,
        event_paths: tuple[str, ...] = ("own/order.py",),
        feature_paths: tuple[str, ...] = ("own/paid.py",),
        **settings: object,
    ) -> list[str]:
        for name, text in (FILES if files is None else files).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        paths = {"event_paths": list(event_paths), "feature_paths": list(feature_paths)}
        try:
            load(None, {}, **(paths | settings))
        except ConfigError as error:
            return list(error.faults)
        return []

    return declare


def line_of(text: str, part: str) -> int:
    """Number of the first line that holds `part`."""
    return next(i for i, line in enumerate(text.splitlines(), 1) if part in line)


def test_an_event_type_of_the_user_stands_behind_ours(own: Callable[..., list[str]]) -> None:
    codes = {name: i for i, name in enumerate(built_in_types())}
    before = catalog().names("payment")
    forget()
    assert own() == []
    assert list(event_types()) == [*codes, "order"]
    assert {name: event_code(name) for name in codes} == codes
    assert catalog().names("order") == ("user_orders_1h", "user_total_1h", "user_total_z")
    assert set(catalog().names("payment")) - set(before) == {"user_orders_before_1h"}
    assert avro_schema("order")["name"] == "order"
    assert "| `user_total_z` | sigma |" in reference(catalog())


def test_types_of_the_user_stand_by_name_and_repeats_do_not_hang_on_their_codes(
    own: Callable[..., list[str]],
) -> None:
    assert own() == []
    salt, code = repeats._salt("order"), event_code("order")
    layout = json.loads(layout_array(catalog()).tobytes())
    forget()
    basket = FILES["own/order.py"].replace('"order"', '"basket"').replace('"orders"', '"baskets"')
    assert own(FILES | {"own/basket.py": basket}, ("own/order.py", "own/basket.py")) == []
    assert list(event_types())[-2:] == ["basket", "order"]
    assert event_code("order") == code + 1 and repeats._salt("order") == salt
    moved = json.loads(layout_array(catalog()).tobytes())
    codes = [one["entities"]["user"]["codes"]["order"] for one in (layout, moved)]
    assert codes == [code, code + 1], "a state of before is not taken for one of now"


def test_features_of_the_user_are_computed_over_their_events_and_ours(
    own: Callable[..., list[str]],
) -> None:
    import polars as pl

    from features.batch import EventBatch, sample_batch

    assert own() == []
    order = sample_batch("order", 3)
    frame = order.frame.with_columns(
        user_id=pl.Series(["u", "u", "v"]),
        total=pl.Series([2.0, 3.0, 7.0]),
        time_us=pl.Series([10, 20, 30]) * 1_000_000,
    )
    orders = EventBatch("order", frame, order.partition, order.offset, order.due_ns)
    payment = sample_batch("payment", 1)
    paid = replace(
        payment,
        frame=payment.frame.with_columns(user_id=pl.lit("u"), time_us=pl.lit(25_000_000, pl.Int64)),
    )
    found = OfflineEngine(catalog(), 3).process({"order": orders, "payment": paid})
    assert found["order"].column("user_orders_1h").tolist() == [1.0, 2.0, 1.0]
    assert found["order"].column("user_total_1h").tolist() == [2.0, 5.0, 7.0]
    assert found["payment"].column("user_orders_before_1h").tolist() == [2.0]
    assert "log_total" in real_names("order")
    assert Columns(orders).real("log_total")[2] == pytest.approx(2.0794415416798357)


MADE = """from features.spec import Feature


def made(name, entity, op, column, other, unit="1"):
    return Feature(
        name, "payment", entity, op, "{value}", unit, "velocity", column=column, other=other
    )


def count(name, entity, window_s):
    return Feature(
        name, "payment", entity, "count", "{value}", "1", "velocity", window_s=window_s
    )


FEATURES = (
    made("top", "card", "difference", "middle", "card_n"),
    made("middle", "merchant", "ratio", "bottom", "card_n"),
    made("bottom", "ip", "difference", "ip_n", "card_n"),
    count("card_n", "card", 60),
    count("ip_n", "ip", 3600),
)
"""
"""Each is made of one that the catalogue has further down."""


def test_features_are_made_of_others_wherever_those_stand(own: Callable[..., list[str]]) -> None:
    import polars as pl

    from features.batch import EventBatch, sample_batch
    from tests.naive import NaiveEngine, in_global_order

    assert own({"own/made.py": MADE}, (), ("own/made.py",), features=["top"]) == []
    cat = catalog()
    assert cat.names("payment") == ("card_n", "top", "middle", "ip_n", "bottom")
    payment = sample_batch("payment", 4)
    frame = payment.frame.with_columns(
        card_id=pl.Series(["c", "d", "c", "c"]),
        ip=pl.Series(["i", "i", "i", None]),
        time_us=pl.Series([10, 20, 30, 40]) * 1_000_000,
    )
    batch = EventBatch("payment", frame, payment.partition, payment.offset, payment.due_ns)
    (found,) = OfflineEngine(cat, 3).process({"payment": batch}).values()
    # ip_n 1 2 3 -, card_n 1 1 2 3
    expected = {"bottom": [0.0, 1.0, 1.0, NAN], "middle": [0.0, 1.0, 0.5, NAN],
                "top": [-1.0, 0.0, -1.5, NAN]}  # fmt: skip
    naive = NaiveEngine(cat).process(in_global_order({"payment": batch}))
    for name, values in expected.items():
        np.testing.assert_array_equal(found.column(name), values)
        np.testing.assert_array_equal([row[name] for row in naive], values)


def test_what_is_told_of_emptied_windows_follows_from_whatever_stands_below(
    own: Callable[..., list[str]],
) -> None:
    text = MADE.replace('"merchant"', '"card"').replace('"ip"', '"card"')
    assert own({"own/made.py": text}, (), ("own/made.py",), features=["top"]) == []
    assert timed_names(catalog(), "payment", "card") == (
        "card_n", "ip_n", "top", "middle", "bottom"
    )  # fmt: skip


def test_a_circle_of_features_is_refused_with_the_line_of_each(
    own: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text = MADE.replace('"bottom", "ip", "difference", "ip_n"', '"bottom", "ip", "ratio", "top"')
    text = text.replace(
        "    count", '    made("own", "card", "ratio", "card_n", "own"),\n    count', 1
    )
    at = {name: f"own/made.py:{line_of(text, f'made({chr(34)}{name}')}" for name in
          ("top", "middle", "bottom", "own")}  # fmt: skip
    told = own({"own/made.py": text}, (), ("own/made.py",))
    assert sorted(fault.partition(";")[0] for fault in told) == [
        f"{at['top']}: payment.top: is made of itself: 'top' reads 'middle' ({at['middle']})"
        f" reads 'bottom' ({at['bottom']}) reads 'top'",
        f"{at['own']}: payment.own: is made of itself: 'own' reads 'own'",
    ]
    forget()
    assert main(["check", "--set", "feature_paths=own/made.py"]) == 2
    assert f"{at['top']}: payment.top: is made of itself" in capsys.readouterr().err


def test_the_catalogue_follows_the_code_of_a_column_and_not_its_comments(
    own: Callable[..., list[str]],
) -> None:
    text = FILES["own/order.py"]
    versions = []
    for changed in (
        text,
        text.replace("def log_total", "# The usual one.\ndef log_total"),
        text.replace("np.log1p(columns.real", "np.log2(columns.real"),
        text.replace(
            '"whether it is sent at once", default=False', '"sent at once", nullable=True'
        ),
        text.replace('Field("express", "bool"', 'Field("express", "int64"').replace(
            "default=False", "default=0"
        ),
        *(
            text.replace('log_total, "', f'lambda c: {times} * c.real("total"), "')
            for times in (2, 3)
        ),
        text.replace('log_total, "log(1 + total)"', 'log_total, "its logarithm"'),
    ):
        forget()
        assert own(FILES | {"own/order.py": changed}) == []
        versions.append(catalog().version)
    assert versions[0] == versions[1] == versions[3] == versions[7]
    assert len(set(versions)) == 5


def test_nothing_comes_onto_the_path_and_neighbours_shadow_nothing(
    own: Callable[..., list[str]], tmp_path: Path
) -> None:
    trap = 'raise RuntimeError("a user\'s file was taken for ours")\n'
    names = ("models.py", "features.py", "dataflows.py", "columns.py", "order.py")
    traps = {f"{folder}{name}": trap for folder in ("", "own/") for name in names}
    before = list(sys.path)
    assert own(traps | FILES) == []
    assert sys.path == before
    (mine,) = (m for n, m in sys.modules.items() if n.startswith("waxwing_own_")
               and m.__file__ == str(tmp_path / "own/order.py"))  # fmt: skip
    assert mine.EVENT.name == "order"


WRONG = """from features.columns import Derived
from features.spec import Feature


def odd(columns):
    return columns.real("totl")


def few(columns):
    return columns.real("total")[:1]


def counts(name, **more):
    return Feature(
        name, "order", "user", "count", "{value}", more.pop("unit", "1"), "velocity", **more
    )


def of_payments(name, op, unit, feeds=("payment",), **more):
    return Feature(name, "order", "user", op, "{value}", unit, "geo", feeds, **more)


DERIVED = (
    Derived("order", "odd", "real", odd, "no such field"),
    Derived("order", "few", "real", few, "one value"),
    Derived("order", "total", "real", few, "a field"),
    Derived("order", "word", "text", few, "no such kind"),
    Derived("ordre", "late", "flag", few, "no such type"),
)
FEATURES = (
    counts("a", window_s=0),
    counts("b", window_s=60, column="total"),
    counts("c", window_s=60, unit="s"),
    counts("user_orders_1h", window_s=60),
    Feature("d", "order", "card", "sum", "{value}", "EUR", "amount", column="totl", window_s=60),
    *(
        counts(name, window_s=60)
        for name in "ee"
    ),
    Feature("f", "order", "user", "cuont", "{value}", "1", "velocity", window_s=60),
    3,
    of_payments("g", "first_time", "flag", other="merchant"),
    of_payments("h", "z", "sigma", column="amount"),
    of_payments("i", "entropy", "bit", other="merchant"),
    of_payments("j", "home_km", "km"),
    of_payments("k", "home_km", "km", feeds=()),
    of_payments("l", "correlation", "1", column="total", other="shop", window_s=60),
)
"""
"""Columns from line 23, features from line 30."""


EXPECTED = (
    "event_paths: 'own/gone.py' does not exist",
    "feature_paths: 'own/notes.txt' is no Python file",
    "own/again.py:9: event type 'payment' is declared already, by waxwing itself",
    "own/entity.py:9: event type 'order': primary entity 'usr' is not one of user, shop",
    "own/torn.py:1: syntax error: '(' was never closed",
    "own/raises.py:2: KeyError: 'x'",
    "own/empty.py:1: declares no DERIVED or FEATURES",
    "own/word.py:1: FEATURES: expected a tuple of Feature, got str",
    "own/wrong.py:6: column order.odd: ColumnNotFoundError",
    "own/wrong.py:23: column order.few: a real is an array float64 of one value a row, (3,);",
    "own/wrong.py:23: column order.total: is a field or an entity of the event type already",
    "own/wrong.py:23: column order.word: kind is 'text'; it must be real or flag",
    "own/wrong.py:23: column ordre.late: unknown event type 'ordre'",
    "own/wrong.py:30: FEATURES[8]: expected a Feature, got int",
    "own/wrong.py:31: order.a: window_s is 0; it must be in 1..",
    "own/wrong.py:32: order.b: operation 'count' takes no `column`",
    "own/wrong.py:33: order.c: unit 's' does not fit; operation 'count' gives '1'",
    "own/wrong.py:34: order.user_orders_1h: declared twice, first at own/order.py:",
    "own/wrong.py:35: order.d: 'order' has no entity 'card'; entities are user, shop",
    "own/wrong.py:35: order.d: 'order' has no number 'totl'; there are total,",
    "own/wrong.py:37: order.e: declared twice, first at own/wrong.py:37",
    "own/wrong.py:40: order.f: unknown operation 'cuont'; operations are count,",
    "own/wrong.py:42: order.g: 'order' has no entity or string column 'merchant'; there are user,",
    "own/wrong.py:43: order.h: 'order' has no number 'amount'; there are total,",
    "own/wrong.py:44: order.i: 'order' has no entity or string column 'merchant'; there are user,",
    "own/wrong.py:45: order.j: 'order' has no place: operation 'home_km' reads the numbers place_x",
    "own/wrong.py:46: order.k: 'order' has no place: operation 'home_km' reads the numbers place_x",
    "own/wrong.py:47: order.l: operation 'correlation' is about values that feed it; 'order'",
    "groups: Input should be greater than or equal to 1",
    "unknown event type 'odrer' (did you mean 'order'?)",
)
"""A part of each fault; the last two are of the settings."""


def test_every_fault_is_told_at_once_with_file_and_line(
    own: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    files = FILES | {
        "own/wrong.py": WRONG,
        "own/torn.py": "FEATURES = (\n",
        "own/raises.py": "def down():\n    return {}['x']\n\n\nFEATURES = down()\n",
        "own/empty.py": '"""Nothing."""\n',
        "own/word.py": 'FEATURES = "abc"\n',
        "own/again.py": FILES["own/order.py"].replace('"order"', '"payment"'),
        "own/entity.py": FILES["own/order.py"].replace('primary="user"', 'primary="usr"'),
        "own/notes.txt": "",
    }
    named = ["order", "again", "entity", "gone"]
    others = ["wrong.py", "torn.py", "raises.py", "empty.py", "word.py", "notes.txt"]
    event_paths = tuple(f"own/{name}.py" for name in named)
    feature_paths = tuple(f"own/{name}" for name in others)
    told = own(files, event_paths, feature_paths, event_types=["order", "odrer"], groups=0)
    for part in EXPECTED:
        assert sum(part in fault for fault in told) == 1, (part, "\n".join(told))
    forget()
    paths = [f"event_paths={','.join(event_paths)}", f"feature_paths={','.join(feature_paths)}"]
    assert main(["check", "--set", paths[0], "--set", paths[1]]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in EXPECTED[:-2])


def test_a_folder_is_its_files_but_those_that_begin_with_an_underscore(
    own: Callable[..., list[str]], tmp_path: Path
) -> None:
    traps = {"own/_notes.py": "raise RuntimeError\n"}
    assert own(FILES | traps, ("own",), ("own",)) == []
    assert {f.declared_at.split("/")[-1].split(":")[0] for f in registry.own().features} == {
        "order.py", "paid.py"
    }  # fmt: skip
    forget()
    (tmp_path / "bare").mkdir()
    assert own({}, ("own",), ("bare",)) == ["feature_paths: folder 'bare' has no file *.py"]


def test_a_file_of_columns_alone_is_one_of_features(own: Callable[..., list[str]]) -> None:
    text = "from features.columns import Derived\n\n\ndef twice(columns):\n"
    text += '    return 2.0 * columns.real("amount")\n\n\n'
    text += 'DERIVED = (Derived("payment", "twice", "real", twice, "twice the amount"),)\n'
    assert own({"own/twice.py": text}, (), ("own/twice.py",)) == []
    assert "twice" in real_names("payment")


def test_what_was_read_is_not_declared_anew(own: Callable[..., list[str]]) -> None:
    assert own() == []
    assert "order" in event_types()
    assert own() == []
    (fault,) = (f for f in _raised(own, FILES | {"own/paid.py": FILES["own/paid.py"] + "\n"}))
    assert "were read already by this process" in fault


def _raised(own: Callable[..., list[str]], files: dict[str, str]) -> list[str]:
    return own(files)


def test_a_feature_knows_where_it_was_declared_and_is_the_same_elsewhere() -> None:
    here = Feature("n", "payment", "card", "count", "{value}", "1", "velocity", window_s=60)
    line = line_of(Path(__file__).read_text(encoding="utf-8"), "here = Feature(")
    assert here.declared_at == f"{__file__}:{line}"
    there = replace(here, declared_at="x.py:1")
    assert here == there and hash(here) == hash(there) and "declared_at" not in repr(here)
    for feature in declared_features():
        name, _, line_text = feature.declared_at.rpartition(":")
        line_there = Path(name).read_text(encoding="utf-8").splitlines()[int(line_text) - 1]
        assert Path(name).parent == ROOT / "features/definitions"
        # The line of the call in FEATURES, not of a helper above it.
        assert int(line_text) > line_of(Path(name).read_text(encoding="utf-8"), "FEATURES")
        assert line_there.strip()
    assert place_of(f"{Path.cwd()}/a/b.py:3") == "a/b.py:3"


def test_operations_of_the_shipped_features_say_which_unit_they_give() -> None:
    assert set(UNITS) <= set(OPERATIONS)
    known = {(f.event, f.name): f for f in declared_features()}
    said = {f.op for f in declared_features() if f.unit in units_of(f, known)}
    assert len(said) > 40 and said == {f.op for f in declared_features() if f.op in UNITS}


@pytest.mark.parametrize(
    ("changes", "gives"),
    [
        ({"unit": "s"}, "operation 'count' gives '1'"),
        ({"op": "since", "window_s": None}, "operation 'since' gives 's'"),
        ({"op": "sum", "column": "amount"}, "operation 'sum' of amount gives 'currency'"),
        ({"op": "max", "column": "latitude"}, "operation 'max' of latitude gives 'deg'"),
        ({"op": "z", "window_s": None, "column": "amount"}, "of amount gives 'sigma'"),
        ({"op": "home_km", "window_s": None}, "operation 'home_km' gives 'km'"),
        ({"op": "first_time", "window_s": None, "other": "device"}, "gives 'flag'"),
        ({"op": "value", "window_s": None, "column": "hour", "entity": ""}, "gives 'h'"),
        ({"op": "value", "window_s": None, "column": "small", "entity": ""}, "gives 'flag'"),
        ({"op": "usual", "window_s": None, "column": "log(n_1m)"}, "gives '1'"),
        ({"op": "ratio", "window_s": None, "column": "n_1m", "other": "since"}, "gives '1/s'"),
        ({"op": "difference", "window_s": None, "column": "since", "other": "since"}, "gives 's'"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused(changes: dict[str, object], gives: str) -> None:
    since = replace(GOOD, name="since", op="since", window_s=None, unit="s")
    wrong = replace(GOOD, name="x", **({"unit": "kg"} | changes))  # type: ignore[arg-type]
    text = faults(GOOD, since, wrong)
    assert gives in text and "does not fit" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": None}, "name: expected a text, got None"),
        ({"why": None}, "why: expected a text, got None"),
        ({"event": ["payment"]}, "event: expected a text, got ['payment']"),
        ({"column": 3}, "column: expected a text or None, got 3"),
        ({"window_s": "3600"}, "window_s: expected a whole number of seconds or None, got '3600'"),
        ({"window_s": 3600.5}, "window_s: expected a whole number of seconds or None, got 3600.5"),
        ({"window_s": True}, "window_s: expected a whole number of seconds or None, got True"),
        ({"feeds": "order"}, "feeds: expected a tuple of texts, got 'order'"),
        ({"feeds": (1,)}, "feeds: expected a tuple of texts, got (1,)"),
        ({"high_is_odd": "low"}, "high_is_odd: expected True, False or None, got 'low'"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_fault_with_file_and_line(
    own: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    told: str,
) -> None:
    good: dict[str, object] = {
        "name": "n", "event": "payment", "entity": "card", "op": "count", "why": "{value}",
        "unit": "1", "group": "velocity", "window_s": 60,
    }  # fmt: skip
    said = ", ".join(f"{name}={value!r}" for name, value in (good | change).items())
    text = f"from features.spec import Feature\n\nFEATURES = (\n    Feature({said}),\n)\n"
    place = f"own/typed.py:4: feature {(good | change)['name']!r}: "
    assert own({"own/typed.py": text}, (), ("own/typed.py",)) == [place + told]
    forget()
    assert main(["features", "list", "--set", "feature_paths=own/typed.py"]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "typed.py" in line] == [
        f"waxwing: {place}{told}"
    ]
    forget()
    listed = good | {"feeds": ["payment"]}
    said = ", ".join(f"{name}={value!r}" for name, value in listed.items())
    text = f"from features.spec import Feature\n\nFEATURES = (Feature({said}),)\n"
    assert own({"own/typed.py": text}, (), ("own/typed.py",)) == []
    assert catalog().feature("payment", "n").feeds == ("payment",)


def _faults_of(own: Callable[..., list[str]], **values: object) -> list[str]:
    """Faults of one feature, declared in line 3 of own/one.py, without the place."""
    good: dict[str, object] = {
        "name": "n", "event": "payment", "entity": "card", "op": "count", "why": "{value}",
        "unit": "1", "group": "velocity", "window_s": 60,
    }  # fmt: skip
    said = ", ".join(f"{name}={value!r}" for name, value in (good | values).items())
    text = f"from features.spec import Feature\n\nFEATURES = (Feature({said}),)\n"
    return own({"own/one.py": text}, (), ("own/one.py",))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *(
            (name, "the name may hold small letters, digits and underscores, at most 63")
            for name in ("", "a b/c", "x.y", "Größe", "n" * 300, "!x*", "Upper", "1st")
        ),
        ("sequence", "the name 'sequence' is that of the last events in the setting `features`"),
        ("event_id", "the name is that of a field or an entity of the event type"),
        ("user", "the name is that of a field or an entity of the event type"),
        ("amount", "the name is that of a field or an entity of the event type"),
    ],
)
def test_a_name_that_a_feature_cannot_have_is_refused(
    own: Callable[..., list[str]], name: str, told: str
) -> None:
    (fault,) = _faults_of(own, name=name)
    assert fault.startswith(f"own/one.py:3: payment.{name}: {told}")


def test_a_value_of_the_event_may_have_the_name_of_its_field(
    own: Callable[..., list[str]],
) -> None:
    assert _faults_of(own, name="amount", op="value", entity="", column="amount",
                      unit="currency", window_s=None) == []  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("maximum=1e6)", "default='abc')", "field 'total': default 'abc' is not a number within"),
        ("maximum=1e6)", "maximum=1e6, default=-1.0)", "default -1.0 is not a number within"),
        ("default=False", "default=0", "field 'express': default 0 is not True or False"),
        ('"where", length_max=64', '"where", length_max=2, default="abc"',
         "field 'shop_id': default 'abc' is not a text of at most 2 bytes"),
        ('"string", "where", length_max=64', '"enum", "where", values=("a",), default="b"',
         "field 'shop_id': default 'b' is not one of a"),
        ('topic="orders"', 'topic="a b/ü"', "topic 'a b/ü' may hold letters, digits, dots,"),
        ('topic="orders"', 'topic=""', "topic '' may hold letters, digits, dots,"),
        ('topic="orders"', 'topic="absences"', "topic 'absences' is that of another, by waxwing"),
        ('primary="user"', 'primary="user", subject=("kind", "shop_id")',
         "subject 'kind' is no field that holds text; those are event_id,"),
        ('"shop": ("shop_id",)', '"total": ("shop_id",)',
         "entity 'total' has the name of a field; it must be made of that field alone"),
        ('"shop": ("shop_id",)', '"shop": ("total",)',
         "entity 'shop' is made of 'total', which holds no text; fields that do are event_id,"),
        ('"shop": ("shop_id",)', '"shop": ()', "entity 'shop' is made of no field"),
        ('name="order"', 'name="absence"',
         "event type 'absence' is declared already, by waxwing itself"),
    ],
)  # fmt: skip
def test_an_event_type_that_does_not_hold_together_is_refused(
    own: Callable[..., list[str]], before: str, after: str, told: str
) -> None:
    text = FILES["own/order.py"].split("def log_total")[0]
    assert text.count(before) == 1
    found = own({"own/order.py": text.replace(before, after)}, feature_paths=())
    place = f"own/order.py:{line_of(text, 'EVENT = EventType(')}: event type"
    assert [fault.startswith(place) and told in fault for fault in found] == [True], found


COLUMN = """import numpy as np

from features.columns import Derived
from features.spec import Feature

DERIVED = (Derived("order", "made", "real", lambda c: MADE, "made"),)
FEATURES = (
    Feature("made_1h", "order", "user", "sum", "{value}", "1", "amount", column="made",
            window_s=3600),
)
"""


@pytest.mark.parametrize(
    "made",
    [
        'c.real("total") - c.real("total").mean()',
        'np.maximum.accumulate(c.real("total"))',
        'np.diff(c.real("total"), prepend=0.0)',
        'np.full(len(c.time_us), float(len(c.time_us)))',
        'np.cumsum(c.flag("express").astype(float))',
        'np.unique(c.key("shop"), return_index=True)[1].astype(float)',
    ],
)  # fmt: skip
def test_a_column_that_reads_other_rows_is_refused(
    own: Callable[..., list[str]], made: str
) -> None:
    files = FILES | {"own/column.py": COLUMN.replace("MADE", made)}
    (fault,) = own(files, feature_paths=("own/column.py",))
    assert fault.startswith("own/column.py:6: column order.made: is another where a row stands")


def test_what_a_column_gives_that_is_no_number_is_not_known_and_told_once(
    own: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    import polars as pl

    from features.batch import EventBatch, sample_batch

    columns._TOLD.clear()
    files = FILES | {"own/column.py": COLUMN.replace("MADE", '1.0 / c.real("total")')}
    assert own(files, feature_paths=("own/column.py",)) == []
    orders = sample_batch("order", 4)
    frame = orders.frame.with_columns(
        total=pl.Series([0.5, 0.0, 1e-300, 0.25]),
        time_us=pl.Series([10, 20, 30, 40]) * 1_000_000,
    )
    batch = EventBatch("order", frame, orders.partition, orders.offset, orders.due_ns)
    engine = OfflineEngine(catalog(), 2)
    found = [engine.process({"order": batch})["order"] for _ in range(2)]
    assert found[0].column("made_1h").tolist() == [2.0, 2.0, 2.0, 6.0]
    assert np.isfinite(found[1].column("made_1h")).all()
    told = [r.getMessage() for r in caplog.records if "order.made" in r.getMessage()]
    assert len(told) == 1 and told[0].startswith("column order.made gave inf, beyond 1e+15")


def test_a_number_without_bounds_is_taken_within_1e15(own: Callable[..., list[str]]) -> None:
    import polars as pl

    from features.batch import sample_batch

    text = FILES["own/order.py"].replace(", minimum=0.0, maximum=1e6", "")
    assert own(FILES | {"own/order.py": text}) == []
    frame = sample_batch("order", 4).frame.with_columns(total=pl.Series([1e15, 1e200, -2e15, -1.0]))
    hold, faults_found = decode.check_contract(
        "order", frame, cut_time_us=2_000_000, past_us_max=10**7, future_us_max=10**7
    )
    assert hold.tolist() == [True, False, False, True]
    assert [(row, reason) for row, reason, _ in faults_found] == [
        (1, "out_of_range"), (2, "out_of_range")
    ]  # fmt: skip
    assert faults_found[0][2] == "total: expected at most 1e+15, got 1e+200"
