"""Tables on an object store that is down, answers 503 to everything, loses the answers to one PUT
in ten, is slow: each device goes on being acknowledged, the journal holds little more than what they sent,
the store is soon used again, the tables catch up, every reading is there once (so say `tidegate sql`
and DuckDB), and each epoch is committed once. Killed meanwhile, it waits in its start until the store
is there again.

TIDEGATE_STORE_SECONDS is the length of each trouble (4), TIDEGATE_SLOW_PUT_S (1) what a PUT takes when
it is slow. From a minute on, how long anything takes is asserted too."""

import json
import os
import time

from device import Device
from harness import ENDPOINT, PIPELINE, Tidegate, eventually, free_port, payload
from oracle import confirm
from s3 import S3

SECONDS = float(os.environ.get("TIDEGATE_STORE_SECONDS", "4"))
# A short run is on a machine that does other things.
LONG = SECONDS >= 60
DEVICES = ["d1", "d2", "d3"]
# A usual telemetry message is larger than the few fields of the test.
PADDING = "x" * 400
JOURNAL_SHARE_MAX = 1.2
# No device waits this long for an acknowledgement, whatever the store does.
SILENCE_S_MAX = 5 if LONG else 30
# Pauses between two tries grow up to 15 s (the S3 client's; our own up to 10 s).
USED_AGAIN_S_MAX = 20
# What was held up comes so much faster than it came in, but for the freshness of the table (1 s) and
# what a commit takes; and a slow PUT that is under way when the trouble ends, and the one after it, are
# slow.
CATCH_UP_MIN, COMMIT_S = 3, 3


def padded(seq):
    return json.dumps({**json.loads(payload(seq)), "note": PADDING})


def journal_bytes(tidegate):
    return sum(f.stat().st_size for f in (tidegate.data / "journal").glob("*.log"))


def trouble(s3, tidegate, devices, mode):
    """One kind of trouble, while readings of each device are acknowledged. How many per second, how
    many in all, the growth of the journal, and the longest silence of a device."""
    s3.proxy.mode = mode
    start, silence_s = time.monotonic(), 0
    counts = first = [d.acknowledged for d in devices]
    heard = [start] * len(devices)
    bytes_before = journal_bytes(tidegate)
    while time.monotonic() < start + SECONDS or any(c == f for c, f in zip(counts, first)):
        time.sleep(0.05)
        now, before = time.monotonic(), counts
        counts = [d.acknowledged for d in devices]
        silence_s = max([silence_s, *(now - h for h in heard)])
        assert silence_s < SILENCE_S_MAX, f"{mode}: no acknowledgements for one of {counts}"
        heard = [now if c > b else h for c, b, h in zip(counts, before, heard)]
    took_s, count = time.monotonic() - start, sum(counts) - sum(first)
    sent = count * len(devices[0]._publish(1, 1000))
    share = (journal_bytes(tidegate) - bytes_before) / sent
    assert share <= JOURNAL_SHARE_MAX, f"{mode}: the journal grows by {share:.2f} of what was sent"
    return count / took_s, sum(counts), share, silence_s


def rows_of(tidegate):
    return tidegate.sql("SELECT count(*) AS n FROM cold_chain.readings")[0]["n"]


class Log:
    """The log of the table of readings, behind the proxy, so that a look is quick and always works."""

    def __init__(self, s3):
        self.s3, self.version, self.rows = s3, 0, 0

    def count(self):
        """How many rows all commits until now have added."""
        while True:
            name = f"history/cold_chain/readings/_delta_log/{self.version:020}.json"
            try:
                lines = self.s3.read(name).decode().splitlines()
            except self.s3.client.exceptions.NoSuchKey:
                return self.rows
            added = [action["add"] for action in map(json.loads, lines) if "add" in action]
            self.rows += sum(json.loads(add["stats"])["numRecords"] for add in added)
            self.version += 1


def through(s3, tidegate, devices, log, mode):
    """A trouble, and what comes after it."""
    rate, at_end, share, silence_s = trouble(s3, tidegate, devices, mode)
    backlog, ended = max(at_end - log.count(), 0), time.monotonic()
    s3.proxy.good_put_s, s3.proxy.mode = None, "good"
    eventually("the store to be used again", lambda: s3.proxy.good_put_s)
    began = s3.proxy.good_put_s
    eventually("the backlog", lambda: log.count() >= at_end)
    took_s = time.monotonic() - began
    said = (f"{mode}: {rate:.0f}/s, no device waited for more than {silence_s:.2f} s, journal "
            f"{share:.2f}, used again after {began - ended:.1f} s; {backlog} readings behind "
            f"({backlog / rate:.1f} s), caught up in {took_s:.1f} s")
    print(said, flush=True)
    slow_s = 2 * s3.proxy.slow_s if mode == "slow" else 0
    if LONG:
        assert began - ended <= USED_AGAIN_S_MAX + slow_s, said
        assert took_s <= backlog / (CATCH_UP_MIN * rate) + COMMIT_S + slow_s, said


def number_of(name):
    return int(name.rsplit("/", 1)[1].removesuffix(".json"))


def commits_are_single(s3):
    """Every table's log: no version is left out, a commit with rows says its one epoch, epochs
    strictly increase, and no file is named twice. How many commits."""
    logs, commits = {}, 0
    for name in s3.names("history/"):
        if "/_delta_log/" in name and name.endswith(".json"):
            logs.setdefault(name.split("/_delta_log/")[0], []).append(name)
    for table, names in logs.items():
        epochs, files = {}, []
        assert [number_of(n) for n in names] == list(range(len(names))), f"{table}: {names}"
        for name in names:
            actions = [json.loads(line) for line in s3.read(name).decode().splitlines()]
            told = [action["txn"] for action in actions if "txn" in action]
            # Others count the rows of a day.
            told = [txn for txn in told if "/rows/" not in txn["appId"]]
            added = [action["add"]["path"] for action in actions if "add" in action]
            assert len(told) == 1 or (not told and not added), (name, actions)
            for txn in told:
                epochs.setdefault(txn["appId"], []).append(txn["version"])
            files += added
        assert len(files) == len(set(files)), f"{table}: a file is named twice"
        for app, of_app in epochs.items():
            assert of_app == sorted(set(of_app)), f"{table}, {app}: an epoch twice: {of_app}"
            commits += len(of_app)
        assert len(epochs) <= 1, f"{table} was written by {sorted(epochs)}"
    assert any(table.endswith("/readings") for table in logs), sorted(logs)
    return commits


def main():
    port = free_port()
    pipeline = PIPELINE.replace("SOURCE", ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    with S3(proxied=True) as s3:
        with Tidegate(pipeline, tables="s3://plant/history", env=s3.env) as tidegate:
            tidegate.port()
            named = {name: Device(port, name, pause_s=0.004) for name in DEVICES}
            devices = list(named.values())
            for device in devices:
                device.payload = padded
                device.start()
            eventually("the first rows", lambda: rows_of(tidegate) > 0)
            # The table that is counted: others may be used before it.
            s3.proxy.watched = "/cold_chain/readings/"
            log = Log(s3)
            for mode in ["down", "storm", "lost", "slow"]:
                through(s3, tidegate, devices, log, mode)
            sent = {name: device.finish() for name, device in named.items()}
            for mode in ["down", "storm"]:
                tidegate.kill()
                s3.proxy.mode = mode
                tidegate.start()
                eventually("a start that waits", lambda: any("the start waits" in line
                                                             for line in list(tidegate.lines)))
                assert tidegate.process.poll() is None, tidegate.lines
                s3.proxy.mode = "good"
                tidegate.port()
            expected = sum(len(s) for s in sent.values())
            eventually("all rows", lambda: rows_of(tidegate) == expected)
            assert all(n == 1 for s in sent.values() for n in s.values()), "a device sent again"
            distinct = tidegate.sql("SELECT count(*) AS n FROM (SELECT DISTINCT device, seq "
                                    "FROM cold_chain.readings)")[0]["n"]
            assert distinct == expected, (distinct, expected)
            tidegate.stop()
            rows = confirm(tidegate, sent, tables=s3.copy("history/", tidegate.folder / "copy"))
            assert rows == expected, (rows, expected)
        assert s3.proxy.lost > 0, "no answer was lost: the test shows nothing"
        commits = commits_are_single(s3)
    print(f"{expected} readings, {commits} commits, {s3.proxy.lost} answers lost, all exact, also for "
          "DuckDB")


main()
