"""DuckDB (its own Delta reader) and delta-rs read the tables of a stopped instance and find the
counts, sums and lists that `tidegate sql` finds."""

import datetime
import pathlib
import subprocess
import sys

import pyarrow.compute as pc
from deltalake import DeltaTable

from harness import ENDPOINT, PIPELINE, Tidegate, publish, totals
from oracle import reader

SEQS = range(600)
# A second has at most two readings of a device: what keeps them all has a bound.
LISTS = PIPELINE.replace('t_max = "max(temperature)"', """t_max = "max(temperature)", \
counts = "histogram(temperature, 20, 22)", buckets = "buckets(temperature, 20)", \
points = "resample(temperature, INTERVAL '10 seconds', window_start, window_end)\"""") + """
[limits]
reading_every = "500ms"
"""


def from_tidegate(tidegate, table, sums):
    columns = ", ".join(f"sum({c}) AS {c}" for c in sums)
    row, = tidegate.sql(f"SELECT count(*) AS rows, {columns} FROM cold_chain.{table}")
    return [row["rows"], *(row[c] for c in sums)]


def from_duckdb(path, sums):
    columns = ", ".join(f"sum({c})::DOUBLE" for c in sums)
    return list(reader().execute(
        f"SELECT count(*), {columns} FROM delta_scan('{path}')").fetchone())


def from_delta_rs(path, sums):
    rows = DeltaTable(str(path)).to_pyarrow_table()
    return [rows.num_rows, *(pc.sum(rows[c]).as_py() for c in sums)]


def compare(tidegate, table, sums):
    ours = from_tidegate(tidegate, table, sums)
    path = tidegate.data / "tables" / "cold_chain" / table
    for name, theirs in [("DuckDB", from_duckdb(path, sums)),
                         ("delta-rs", from_delta_rs(path, sums))]:
        assert theirs == ours, f"{table}: {name} finds {theirs}, tidegate sql finds {ours}"
    return ours


def pairs(points, name):
    """Points or buckets as pairs, times in seconds since 1970."""
    def plain(value):
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        return value.timestamp() if isinstance(value, datetime.datetime) else value
    other = "count" if name == "up_to" else "value"
    return [(plain(p[name]), p[other]) for p in points]


def compare_lists(tidegate):
    """Every list of every window, and conditions on parts of them."""
    path = tidegate.data / "tables" / "cold_chain" / "per_minute"
    by = "ORDER BY device, window_start"

    def shown(rows):
        return [(r["counts"], pairs(r["buckets"], "up_to"), pairs(r["points"], "time"))
                for r in rows]
    ours = shown(tidegate.sql(
        f"SELECT counts, buckets, points FROM cold_chain.per_minute {by}"))
    table = DeltaTable(str(path)).to_pyarrow_table()
    table = table.sort_by([("device", "ascending"), ("window_start", "ascending")])
    theirs = shown(table.select(["counts", "buckets", "points"]).to_pylist())
    assert theirs == ours, f"delta-rs finds {theirs[:2]}, tidegate sql {ours[:2]}"
    query = "SELECT counts, buckets, list_transform(points, p -> {'time': epoch(p.time), " \
            f"'value': p.value}}) AS points FROM delta_scan('{path}') {by}"
    rows = reader().execute(query).fetchall()
    theirs = shown([dict(zip(["counts", "buckets", "points"], row)) for row in rows])
    assert theirs == ours, f"DuckDB finds {theirs[:2]}, tidegate sql {ours[:2]}"
    assert all(sum(counts) == sum(count for _, count in buckets) > 0
               and len(points) == 6 for counts, buckets, points in ours), ours[:2]
    some, = tidegate.sql("SELECT count(*) AS n FROM cold_chain.per_minute WHERE counts[3] > 0 "
                         "AND buckets[1]['count'] > 0 AND points[6]['value'] IS NOT NULL")
    assert 0 < some["n"] <= len(ours), some


def read_tables_script(root):
    """The reader that the tables' own tests use too, where there is one."""
    script = pathlib.Path(__file__).with_name("read_tables.py")
    if script.exists():
        subprocess.run([sys.executable, script, root], check=True)


def main():
    with Tidegate(LISTS.replace("SOURCE", ENDPOINT)) as tidegate:
        expected = publish(tidegate.port(), SEQS)
        tidegate.wait_for(expected)
        tidegate.stop()
        rows, temperatures, numbers = (sum(x) for x in zip(*expected.values()))
        readings = compare(tidegate, "readings", ["temperature", "seq"])
        assert readings == [rows, temperatures, numbers], (readings, expected)
        windows = compare(tidegate, "per_minute", ["n", "t_sum"])
        count, total, _ = totals(SEQS)
        assert windows == [10 * len(expected), count * len(expected), total * len(expected)]
        compare_lists(tidegate)
        read_tables_script(tidegate.data / "tables")
    print(f"DuckDB and delta-rs agree with tidegate sql on {rows} readings")


main()
