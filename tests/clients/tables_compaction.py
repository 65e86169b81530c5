"""Others compact our tables while we go on appending: delta-rs rewrites files, vacuums, writes
checkpoints and cleans the log, again and again, and is killed in the middle of it. DuckDB, delta-rs,
pyarrow and `tidegate sql` agree at each pinned version before, during and after; `tidegate sql` never
sees a row twice or not at all; Tidegate's writer goes on, also after a restart; and the doctor finds
nothing wrong.

Usage: tables_compaction.py [ROUNDS]       (6 without it)

TIDEGATE_SEED moves the moments of the kills.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time

import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from harness import BINARY, ENDPOINT, PIPELINE, Publisher, QueryFailed, Tidegate, totals, value
from oracle import reader

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 6
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = ["d1", "d2"]

COMPACTOR = """
import sys
from deltalake import DeltaTable
path, once = sys.argv[1], len(sys.argv) > 2
while True:
    try:
        table = DeltaTable(path)
        done = table.optimize.compact()
        # Only files that the log has removed: what is being written is not in the log yet.
        DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False,
                                full=False)
        DeltaTable(path).create_checkpoint()
        DeltaTable(path).cleanup_metadata()
        print(done["numFilesRemoved"], flush=True)
    except Exception as error:
        # Another writer was faster: the next try sees what it did.
        if "conflict" not in str(error).lower() and "concurrent" not in str(error).lower():
            raise
    if once:
        break
"""


def from_duckdb(path, version=None):
    pinned = "" if version is None else f", version = {version}"
    return reader().execute(
        f"SELECT count(*), sum(seq)::BIGINT, sum(temperature) FROM delta_scan('{path}'{pinned})"
    ).fetchone()


def from_delta_rs(path, version=None):
    rows = DeltaTable(str(path), version=version).to_pyarrow_table()
    return rows.num_rows, pc.sum(rows["seq"]).as_py(), pc.sum(rows["temperature"]).as_py()


def from_pyarrow(path, version=None):
    """The Parquet files themselves; delta-rs says only which."""
    rows = ds.dataset(DeltaTable(str(path), version=version).file_uris(),
                      format="parquet").to_table(columns=["seq", "temperature"])
    return rows.num_rows, pc.sum(rows["seq"]).as_py(), pc.sum(rows["temperature"]).as_py()


def from_tidegate(tidegate):
    row, = tidegate.sql("SELECT count(*) AS n, sum(seq) AS q, sum(temperature) AS t "
                        "FROM cold_chain.readings")
    return row["n"], row["q"], row["t"]


def pinned_readers(path, version):
    seen = {"DuckDB": from_duckdb(path, version), "delta-rs": from_delta_rs(path, version),
            "pyarrow": from_pyarrow(path, version)}
    assert len(set(seen.values())) == 1, f"version {version}: {seen}"
    return seen["DuckDB"]


def all_readers(tidegate, path):
    """All of them on the newest version, while nobody writes."""
    ours, theirs = from_tidegate(tidegate), pinned_readers(path, None)
    assert ours == theirs, f"tidegate sql finds {ours}, the others {theirs}"
    return ours


class Watcher(threading.Thread):
    """Asks `tidegate sql` all the time: what a device has is always its first so many readings."""

    def __init__(self, tidegate):
        super().__init__(daemon=True)
        self.tidegate, self.end, self.error, self.looks, self.most = (
            tidegate, threading.Event(), None, 0, {})

    def run(self):
        try:
            while not self.end.is_set():
                try:
                    rows = self.tidegate.sql(
                        "SELECT device, count(*) AS n, count(DISTINCT seq) AS d, max(seq) AS high,"
                        " sum(temperature) AS t FROM cold_chain.readings GROUP BY device")
                except QueryFailed as error:
                    # A vacuum without any retention takes files away under a query.
                    assert "not found" in str(error).lower(), error
                    continue
                for row in rows:
                    n, before = row["n"], self.most.get(row["device"], 0)
                    assert (row["d"], row["high"] + 1) == (n, n), row
                    assert row["t"] == sum(value(s) for s in range(n)), row
                    assert n >= before, f"{row} after {before} rows were seen"
                    self.most[row["device"]] = n
                self.looks += 1
        except BaseException as error:  # told to the main thread by `finish`
            self.error = error

    def finish(self):
        self.end.set()
        self.join(90)
        assert self.error is None, self.error
        assert self.looks > 0


def compactor(path, *more):
    return subprocess.Popen([sys.executable, "-c", COMPACTOR, str(path), *more],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def publish(tidegate, sent, count):
    """Each device publishes its next readings; returns how many each has sent."""
    for device in DEVICES:
        publisher = Publisher(tidegate.port(), device)
        publisher.send(range(sent, sent + count))
        publisher.finish()
    return sent + count


def wait(tidegate, sent):
    tidegate.wait_for({device: totals(range(sent)) for device in DEVICES})


def doctor(tidegate):
    done = subprocess.run([BINARY, "doctor", "tables", "--data", tidegate.data, "--json"],
                          capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)
    fails = [row for report in json.loads(done.stdout) for row in report["rows"]
             if row["status"] == "fail"]
    assert done.returncode == 0 and not fails, (done.returncode, fails, done.stderr)


def main():
    chance = random.Random(SEED)
    print(f"TIDEGATE_SEED={SEED}", flush=True)
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        path = tidegate.data / "tables" / "cold_chain" / "readings"
        sent = 0
        for _ in range(4):
            sent = publish(tidegate, sent, 30)
            wait(tidegate, sent)
        before = all_readers(tidegate, path)
        pinned = DeltaTable(str(path)).version()
        # Rewritten, but not yet vacuumed: who reads the old version still can.
        DeltaTable(str(path)).optimize.compact()
        assert pinned_readers(path, pinned) == before
        assert all_readers(tidegate, path) == before
        assert len(DeltaTable(str(path)).file_uris()) < 4
        watcher, removed, killed = Watcher(tidegate), 0, 0
        watcher.start()
        for _ in range(ROUNDS):
            process = compactor(path)
            sent = publish(tidegate, sent, 40)
            # It has been through once: what is killed is its work and not its start.
            first = process.stdout.readline()
            time.sleep(chance.uniform(0.0, 2.0))
            running = first and process.poll() is None
            process.kill()
            out, error = process.communicate()
            assert running, f"the compactor ended: {first}{out}\n{error}"
            out = first + out
            removed, killed = removed + sum(map(int, out.split())), killed + 1
            version = DeltaTable(str(path)).version()
            pinned_readers(path, version)
        assert removed > 0, "nothing was compacted while we wrote"
        wait(tidegate, sent)
        watcher.finish()
        doctor(tidegate)
        tidegate.stop()
        rows = all_readers(tidegate, path)
        # Checkpoints of delta-rs are what a start reads now.
        last = compactor(path, "once")
        out, error = last.communicate(timeout=90)
        assert last.returncode == 0, error
        assert all_readers(tidegate, path) == rows
        tidegate.start()
        sent = publish(tidegate, sent, 30)
        wait(tidegate, sent)
        doctor(tidegate)
        tidegate.stop()
        count, temperature, numbers = totals(range(sent))
        expected = count * len(DEVICES), numbers * len(DEVICES), temperature * len(DEVICES)
        assert all_readers(tidegate, path) == expected
    print(f"{expected[0]} readings: four readers agree, {watcher.looks} looks, {removed} files "
          f"rewritten, the compactor killed {killed} times")


main()
