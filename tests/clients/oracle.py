"""DuckDB as judge: what its own Delta reader finds in the readings of a stopped instance, without
any code of ours between."""

import pathlib

import duckdb
import duckdb_extension_delta

from harness import value


def reader():
    """A connection that can read Delta tables."""
    extension, = pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension")
    connection = duckdb.connect()
    connection.execute(f"LOAD '{extension}'")
    return connection


def confirm(tidegate, sent, doubled=0, missing=(), table="cold_chain/readings", tables=None):
    """Every device has each of its numbers (but those of `missing`, pairs of device and number) with
    its own value, and in all there are `doubled` more rows than numbers. Gives the number of rows.
    `tables` is where they are, if not in the data folder."""
    path = (tables or tidegate.data / "tables") / table
    rows = reader().execute(
        "SELECT device, count(*), count(DISTINCT seq), min(seq), max(seq), "
        "sum(DISTINCT seq)::BIGINT, count(*) FILTER (temperature <> 20.0 + (seq % 10) / 2.0), "
        f"sum(temperature) FROM delta_scan('{path}') GROUP BY device").fetchall()
    found = {row[0]: row[2:6] for row in rows}
    expected = {}
    for device, numbers in sent.items():
        numbers = set(numbers) - {seq for name, seq in missing if name == device}
        expected[device] = len(numbers), min(numbers), max(numbers), sum(numbers)
    wrong = {d: (found.get(d), expected.get(d)) for d in found.keys() | expected.keys()
             if found.get(d) != expected.get(d)}
    assert not wrong, f"DuckDB finds (count, least, greatest, sum of numbers): {wrong}"
    assert all(row[6] == 0 for row in rows), f"values that nobody sent: {rows}"
    total, distinct = sum(row[1] for row in rows), sum(row[2] for row in rows)
    assert total - distinct == doubled, f"DuckDB finds {total - distinct} doubled, not {doubled}"
    if not doubled and not missing:
        sums = {row[0]: row[7] for row in rows}
        assert sums == {d: sum(value(s) for s in numbers) for d, numbers in sent.items()}, sums
    return total
