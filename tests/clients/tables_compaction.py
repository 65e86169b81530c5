"""Others compact our tables while we go on appending: delta-rs rewrites files, vacuums, writes
checkpoints and cleans the log, again and again, and is killed in the middle of it. Meanwhile
DuckDB, delta-rs and `tidegate sql` read: what a device has is always its first so many readings,
with their values, never fewer than before, never more than were sent. DuckDB, delta-rs, pyarrow and
`tidegate sql` agree at each pinned version, and in the end on what was sent; a version whose files
a vacuum took away is refused and never answered from a part; Tidegate's writer goes on, also after
a restart; and the doctor finds nothing wrong.

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

import pyarrow.dataset as ds
from deltalake import DeltaTable

from harness import BINARY, ENDPOINT, PIPELINE, Publisher, Tidegate, totals, value
from oracle import reader

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 6
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = ["d1", "d2"]
# Readings that each device publishes while others compact, at a time.
MORE = 40

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


# How readers say that a file is not there any more.
GONE = ("not found", "no such file", "cannot open file", "does not exist")


def is_gone(error):
    return isinstance(error, FileNotFoundError) or any(word in str(error).lower() for word in GONE)


def from_duckdb(path, version=None):
    """By device: rows, different numbers, the greatest number, the sum of all values."""
    pinned = "" if version is None else f", version = {version}"
    rows = reader().execute(
        "SELECT device, count(*), count(DISTINCT seq), max(seq), sum(temperature) "
        f"FROM delta_scan('{path}'{pinned}) GROUP BY device").fetchall()
    return {row[0]: row[1:] for row in rows}


def by_device(rows):
    groups = rows.group_by("device").aggregate([
        ("seq", "count"), ("seq", "count_distinct"), ("seq", "max"), ("temperature", "sum")])
    return {row["device"]: (row["seq_count"], row["seq_count_distinct"], row["seq_max"],
                            row["temperature_sum"]) for row in groups.to_pylist()}


def from_delta_rs(path, version=None):
    return by_device(DeltaTable(str(path), version=version).to_pyarrow_table())


def from_pyarrow(path, version=None):
    """The Parquet files themselves; delta-rs says only which."""
    files = ds.dataset(DeltaTable(str(path), version=version).file_uris(), format="parquet")
    return by_device(files.to_table(columns=["device", "seq", "temperature"]))


def from_tidegate(tidegate):
    rows = tidegate.sql("SELECT device, count(*) AS n, count(DISTINCT seq) AS d, max(seq) AS high,"
                        " sum(temperature) AS t FROM cold_chain.readings GROUP BY device")
    return {row["device"]: (row["n"], row["d"], row["high"], row["t"]) for row in rows}


def first_of(counts):
    """What readers find where devices have their first so many readings."""
    return {device: (n, n, n - 1, sum(value(s) for s in range(n)))
            for device, n in counts.items() if n > 0}


def pinned_readers(path, version, sent):
    """All of them on one version: what devices have sent, from the first on; how many of each."""
    seen = {"DuckDB": from_duckdb(path, version), "delta-rs": from_delta_rs(path, version),
            "pyarrow": from_pyarrow(path, version)}
    counts = {device: row[0] for device, row in seen["DuckDB"].items()}
    expected = first_of(counts)
    assert all(rows == expected for rows in seen.values()), f"version {version}: {seen}"
    assert all(n <= sent for n in counts.values()), f"{counts}, although {sent} were sent"
    return counts


def all_readers(tidegate, path, sent):
    """All of them on the newest version, while nobody writes: everything that was sent."""
    counts = pinned_readers(path, None, sent)
    assert counts == {device: sent for device in DEVICES}, f"{counts}, although {sent} were sent"
    assert from_tidegate(tidegate) == first_of(counts)


def refused(path, version):
    """A version of which a vacuum has taken files away is answered by nobody."""
    for read in from_duckdb, from_delta_rs, from_pyarrow:
        try:
            rows = read(path, version)
        except Exception as error:
            assert is_gone(error), f"{read.__name__}: {error}"
        else:
            raise AssertionError(f"{read.__name__} answers from files that are gone: {rows}")


class Watcher(threading.Thread):
    """Reads the newest version all the time."""

    def __init__(self, name, read):
        super().__init__(name=name, daemon=True)
        self.read, self.end, self.error, self.looks, self.most, self.sent = (
            read, threading.Event(), None, 0, {}, 0)

    def run(self):
        try:
            while not self.end.is_set():
                try:
                    rows = self.read()
                except Exception as error:
                    # A vacuum without any retention takes files away under a query.
                    assert is_gone(error), error
                    continue
                sent = self.sent
                counts = {device: row[0] for device, row in rows.items()}
                assert rows == first_of(counts), rows
                assert all(n <= sent for n in counts.values()), f"{counts} of {sent}"
                for device, before in self.most.items():
                    assert counts.get(device, 0) >= before, f"{counts} after {self.most}"
                self.most = counts
                self.looks += 1
        except BaseException as error:  # told to the main thread by `finish`
            self.error = error

    def finish(self):
        self.end.set()
        self.join(90)
        assert self.error is None, f"{self.name}: {self.error}"
        assert self.looks > 0, f"{self.name} has never had an answer"


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
        all_readers(tidegate, path, sent)
        pinned = DeltaTable(str(path)).version()
        # Rewritten, but not yet vacuumed: who reads the old version still can.
        DeltaTable(str(path)).optimize.compact()
        assert pinned_readers(path, pinned, sent) == {device: sent for device in DEVICES}
        all_readers(tidegate, path, sent)
        assert len(DeltaTable(str(path)).file_uris()) < 4
        watchers = [Watcher("tidegate sql", lambda: from_tidegate(tidegate)),
                    Watcher("DuckDB", lambda: from_duckdb(path)),
                    Watcher("delta-rs", lambda: from_delta_rs(path))]
        removed, killed, had = 0, 0, {}
        for watcher in watchers:
            watcher.sent = sent
            watcher.start()
        for _ in range(ROUNDS):
            process = compactor(path)
            for watcher in watchers:
                watcher.sent = sent + MORE
            sent = publish(tidegate, sent, MORE)
            # It has been through once: what is killed is its work and not its start.
            first = process.stdout.readline()
            time.sleep(chance.uniform(0.0, 2.0))
            running = first and process.poll() is None
            process.kill()
            out, error = process.communicate()
            assert running, f"the compactor ended: {first}{out}\n{error}"
            out = first + out
            removed, killed = removed + sum(map(int, out.split())), killed + 1
            counts = pinned_readers(path, DeltaTable(str(path)).version(), sent)
            assert all(counts.get(d, 0) >= n for d, n in had.items()), f"{counts} after {had}"
            had = counts
        assert removed > 0, "nothing was compacted while we wrote"
        wait(tidegate, sent)
        for watcher in watchers:
            watcher.finish()
        refused(path, pinned)
        doctor(tidegate)
        tidegate.stop()
        all_readers(tidegate, path, sent)
        # Checkpoints of delta-rs are what a start reads now.
        last = compactor(path, "once")
        out, error = last.communicate(timeout=90)
        assert last.returncode == 0, error
        all_readers(tidegate, path, sent)
        tidegate.start()
        sent = publish(tidegate, sent, 30)
        wait(tidegate, sent)
        doctor(tidegate)
        tidegate.stop()
        all_readers(tidegate, path, sent)
    looks = ", ".join(f"{watcher.name} {watcher.looks}" for watcher in watchers)
    print(f"{sent * len(DEVICES)} readings: four readers agree with what was sent; looks meanwhile:"
          f" {looks}; {removed} files rewritten, the compactor killed {killed} times")


main()
