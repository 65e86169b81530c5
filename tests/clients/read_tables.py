"""Reads all tables below a root with delta-rs and DuckDB and compares what they see.

Usage: read_tables.py ROOT        (a local folder)
Needs from PyPI: deltalake, duckdb, pyarrow.

Prints one JSON object: table -> count and sums of its numeric columns. delta-rs reads the log and
the files; DuckDB reads the files that the log names as plain Parquet. Exits 1 if they disagree.
"""

import json
import math
import os
import sys

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable


def table_folders(root):
    for schema in sorted(os.listdir(root)):
        if not os.path.isdir(os.path.join(root, schema)):
            continue
        for table in sorted(os.listdir(os.path.join(root, schema))):
            folder = os.path.join(root, schema, table)
            if os.path.isdir(os.path.join(folder, "_delta_log")):
                yield f"{schema}.{table}", folder


def is_number(kind):
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def by_delta_rs(table):
    rows = pa.table(table.to_pyarrow_table())
    sums = {}
    for field in rows.schema:
        if is_number(field.type):
            column = rows[field.name]
            if pa.types.is_integer(field.type):
                # Arrow's sum of integers wraps around.
                column = column.cast(pa.decimal128(38, 0))
            total = pc.sum(column).as_py()
            sums[field.name] = None if total is None else float(total)
    return {"count": rows.num_rows, "sums": sums}


def by_duckdb(table, columns):
    files = table.file_uris()
    if not files:
        return {"count": 0, "sums": {name: None for name in columns}}
    selected = ["count(*)"]
    for name in columns:
        quoted = '"' + name.replace('"', '""') + '"'
        selected.append(f"sum({quoted})")
    names = ", ".join("'" + f.replace("'", "''") + "'" for f in files)
    source = f"read_parquet([{names}], hive_partitioning = false, union_by_name = true)"
    row = duckdb.connect().execute(f"SELECT {', '.join(selected)} FROM {source}").fetchall()[0]
    sums = {n: None if v is None else float(v) for n, v in zip(columns, row[1:])}
    return {"count": row[0], "sums": sums}


def same(a, b):
    if a is None or b is None:
        return a is None and b is None
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def main(root):
    result, agree = {}, True
    for name, folder in table_folders(root):
        table = DeltaTable(folder)
        first = by_delta_rs(table)
        second = by_duckdb(table, list(first["sums"]))
        equal = first["count"] == second["count"] and all(
            same(first["sums"][c], second["sums"][c]) for c in first["sums"]
        )
        if not equal:
            agree = False
            print(f"{name}: delta-rs {first}, DuckDB {second}", file=sys.stderr)
        result[name] = first
    print(json.dumps(result, sort_keys=True))
    return 0 if agree and result else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
