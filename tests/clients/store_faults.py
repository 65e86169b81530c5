"""Tables on an object store that is down, answers 503 to everything, loses the answers to one PUT in
ten, is slow: devices go on being acknowledged, the journal holds little more than what they sent,
the tables catch up, every reading is there once, and each epoch is committed once. Killed meanwhile, it
waits in its start until the store is there again.

TIDEGATE_STORE_SECONDS is the length of each trouble (4), TIDEGATE_SLOW_PUT_S (1) what a PUT takes when
it is slow."""

import json
import os
import time

from harness import ENDPOINT, PIPELINE, Device, Tidegate, eventually, free_port, payload
from s3 import S3

SECONDS = float(os.environ.get("TIDEGATE_STORE_SECONDS", "4"))
DEVICES = ["d1", "d2", "d3"]
# A usual telemetry message is larger than the few fields of the test.
PADDING = "x" * 400
JOURNAL_SHARE_MAX = 1.2
# No device waits this long for an acknowledgement, whatever the store does.
SILENCE_S_MAX = 30
# What was held up comes faster than it came in; a short trouble is over before the pause between two
# tries is.
CATCH_UP_MIN, LONG_S = 3, 300


def padded(seq):
    return json.dumps({**json.loads(payload(seq)), "note": PADDING})


def journal_bytes(tidegate):
    return sum(f.stat().st_size for f in (tidegate.data / "journal").glob("*.log"))


def trouble(s3, tidegate, devices, mode):
    """One kind of trouble, while readings are acknowledged. How long, and how many of them."""
    s3.proxy.mode = mode
    start = last = time.monotonic()
    first = count = sum(d.acknowledged for d in devices)
    bytes_before = journal_bytes(tidegate)
    while time.monotonic() < start + SECONDS or count == first:
        time.sleep(0.05)
        now = sum(d.acknowledged for d in devices)
        if now > count:
            count, last = now, time.monotonic()
        assert time.monotonic() - last < SILENCE_S_MAX, f"{mode}: no acknowledgements any more"
    sent = sum(len(devices[0]._publish(1, 1000)) for _ in range(count - first))
    share = (journal_bytes(tidegate) - bytes_before) / sent
    assert share <= JOURNAL_SHARE_MAX, f"{mode}: the journal grows by {share:.2f} of what was sent"
    return (count - first) / SECONDS, count, share


def rows_of(tidegate):
    return tidegate.sql("SELECT count(*) AS n FROM cold_chain.readings")[0]["n"]


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
            said = []
            for mode in ["down", "storm", "lost", "slow"]:
                had = rows_of(tidegate)
                rate, at_end, share = trouble(s3, tidegate, devices, mode)
                ended = time.monotonic()
                s3.proxy.good_put_s, s3.proxy.mode = None, "good"
                eventually("the store to be used again", lambda: s3.proxy.good_put_s)
                began = s3.proxy.good_put_s
                eventually("the backlog", lambda: rows_of(tidegate) >= at_end)
                speed = (at_end - had) / (time.monotonic() - began)
                said.append(f"{mode}: {rate:.0f}/s, journal {share:.2f}, used again after "
                            f"{began - ended:.1f} s, caught up at {speed:.0f}/s")
                print(said[-1], flush=True)
                # With the others rows come all the time, and a short backlog is a matter of
                # freshness and of how long a query takes.
                if mode in ("down", "storm") and SECONDS >= LONG_S:
                    assert speed >= CATCH_UP_MIN * rate, said[-1]
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
        assert s3.proxy.lost > 0, "no answer was lost: the test shows nothing"
        commits = commits_are_single(s3)
    print(f"{expected} readings, {commits} commits, {s3.proxy.lost} answers lost, all exact")


main()
