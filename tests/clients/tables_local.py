"""DuckDB (its own Delta reader) and delta-rs read the tables of a stopped instance and find the
counts and sums that `tidegate sql` finds."""

import pathlib
import subprocess
import sys

import pyarrow.compute as pc
from deltalake import DeltaTable

from harness import ENDPOINT, PIPELINE, Tidegate, publish, totals
from oracle import reader

SEQS = range(600)


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


def read_tables_script(root):
    """The reader that the tables' own tests use too, where there is one."""
    script = pathlib.Path(__file__).with_name("read_tables.py")
    if script.exists():
        subprocess.run([sys.executable, script, root], check=True)


def main():
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        expected = publish(tidegate.port(), SEQS)
        tidegate.wait_for(expected)
        tidegate.stop()
        rows, temperatures, numbers = (sum(x) for x in zip(*expected.values()))
        readings = compare(tidegate, "readings", ["temperature", "seq"])
        assert readings == [rows, temperatures, numbers], (readings, expected)
        windows = compare(tidegate, "per_minute", ["n", "t_sum"])
        count, total, _ = totals(SEQS)
        assert windows == [10 * len(expected), count * len(expected), total * len(expected)]
        read_tables_script(tidegate.data / "tables")
    print(f"DuckDB and delta-rs agree with tidegate sql on {rows} readings")


main()
