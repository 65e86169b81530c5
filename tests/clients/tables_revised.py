"""DuckDB, with the query that README.md gives for other readers, finds in every table whose rows can
come again what `tidegate sql` shows: the newest revision of each, without what was withdrawn."""

import json
import pathlib
import re

from deltalake import DeltaTable

from harness import ENDPOINT, PIPELINE, Publisher, Tidegate, eventually
from oracle import reader

STEPS = """
[[step]]
name   = "counts"
type   = "window"
count  = 7
select = { t_sum = "sum(temperature)" }

[[step]]
name   = "sessions"
type   = "window"
gap    = "20s"
select = { t_sum = "sum(temperature)" }

[[step]]
name   = "states"
type   = "window"
while  = "temperature < 24"
select = { t_sum = "sum(temperature)" }

[[step]]
name   = "silence"
type   = "absence"
every  = "1s"
missed = 10

[[step]]
name   = "falls"
type   = "sequence"
first  = "temperature >= 24"
then   = "temperature < 21"
within = "20s"

[[step]]
name  = "cool"
type  = "filter"
from  = "per_minute"
where = "n < 40"

[[step]]
name   = "halves"
type   = "window"
every  = "1m"
by     = ["site", "device"]
select = { t_min = "min(temperature)" }

[[step]]
name = "both"
type = "join"
from = "cool"
with = "halves"
"""
TABLES = ["counts", "sessions", "states", "silence", "falls", "cool", "both"]
KEPT = ["counts", "falls"]  # nothing of them is withdrawn here


def recipe():
    """The query in README.md."""
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    found, = re.findall(r"```sql\n(SELECT \* FROM windows\nQUALIFY .*?)```", text, re.DOTALL)
    return found


def by_duckdb(path, columns, query):
    """Rows by the query, with the columns that tell the table's rows apart in place of its own."""
    settings = DeltaTable(str(path)).metadata().configuration
    identity = ", ".join(json.loads(settings["tidegate.identity"]))
    query, changed = re.subn(r"PARTITION BY .*? ORDER", f"PARTITION BY {identity} ORDER", query)
    assert changed == 1, query
    query = query.replace("FROM windows", f"FROM delta_scan('{path}')")
    shown = ", ".join(f"{c}::VARCHAR" for c in columns)
    return sorted(map(str, reader().execute(f"SELECT {shown} FROM ({query})").fetchall()))


def by_tidegate(tidegate, table, columns):
    shown = ", ".join(f"arrow_cast({c}, 'Utf8') AS {c}" for c in columns)
    rows = tidegate.sql(f"SELECT {shown} FROM cold_chain.{table}")
    return sorted(str(tuple(row.get(c) for c in columns)) for row in rows)


def main():
    tables = "\n[limits]\nreading_every = \"500ms\"\n" + "".join(f'\n[[table]]\nfrom = "{t}"\nfreshness = "1s"\n' for t in TABLES)
    query = recipe()
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT) + STEPS + tables) as tidegate:
        publisher = Publisher(tidegate.port(), "d1")
        # What comes late joins sessions, moves counts, ends a silence, and fills a minute up.
        publisher.send([*range(0, 30), *range(60, 90), *range(200, 230), 300])
        # They are late only after what closes their windows has been through.
        eventually("windows", lambda: all(
            tidegate.sql(f"SELECT 1 FROM cold_chain.{table}") for table in TABLES))
        publisher.send([45, 5, 70, *range(90, 115), 205, 500])
        publisher.finish()
        tidegate.stop()
        for table in TABLES:
            path = tidegate.data / "tables" / "cold_chain" / table
            fields = [f.name for f in DeltaTable(str(path)).schema().fields]
            columns = [f for f in fields if f.endswith(("device", "number", "rows", "revision"))
                       or f in ("n", "t_sum", "t_min", "status")]
            ours = by_tidegate(tidegate, table, columns)
            theirs = by_duckdb(path, columns, query)
            assert ours == theirs, f"{table}: DuckDB {theirs}, tidegate sql {ours}"
            every, = tidegate.sql(f"SELECT count(*) AS n, count(*) FILTER (WHERE rows = 0) AS gone "
                                  f"FROM cold_chain.{table}_revisions")
            assert ours and every["n"] > len(ours), f"{table}: nothing came again"
            assert every["gone"] or table in KEPT, f"{table}: nothing was withdrawn"
    print(f"DuckDB finds the newest revisions of {len(TABLES)} tables as tidegate sql does")


main()
