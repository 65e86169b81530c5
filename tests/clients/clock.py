"""The system clock is set an hour back, a day ahead, and runs at a tenth and at ten times its speed,
while devices publish and Tidegate is killed once: epochs and ticks only go forward, every reading is
there once, windows are those of a plain loop, and nowhere is a time negative that something took:
neither in the metrics nor in a system table.

The clock is that of libfaketime, for the process under test alone. TIDEGATE_CLOCK_SECONDS is how
long it is set to each (1.2)."""

import glob
import os
import pathlib
import struct
import sys
import tempfile
import time
import urllib.request

from harness import (ENDPOINT, PIPELINE, Device, Tidegate, eventually, free_port, judge, value)
from oracle import confirm

# What libfaketime reads; the monotonic clock goes on as it does when a real clock is set.
CLOCKS = ["+0", "-1h", "+1d", "+0 x0.1", "+0 x10", "-1h", "+0"]
EACH_S = float(os.environ.get("TIDEGATE_CLOCK_SECONDS", "1.2"))
DEVICES = ["d1", "d2", "d3"]
FRAME = struct.Struct("<2sBBIQQII")
FILE_HEADER_BYTES, TICK = 60, 2


def library():
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not found:
        sys.exit("libfaketime is needed: apt-get install libfaketime")
    return found[0]


def signed(body):
    """A zigzag number of seven bits per byte."""
    number, shift = 0, 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number >> 1 ^ -(number & 1)
    raise AssertionError("a cut number")


def ticks(tidegate):
    """Epoch and time of every tick in the journal, in its order."""
    for path in sorted((tidegate.data / "journal").glob("*.log")):
        data, at = path.read_bytes(), FILE_HEADER_BYTES
        while at + FRAME.size <= len(data):
            magic, _, kind, length, epoch, _, _, _ = FRAME.unpack_from(data, at)
            assert magic == b"TG", (path, at)
            body = data[at + FRAME.size:at + FRAME.size + length]
            if kind == TICK:
                yield epoch, signed(body)
            at += FRAME.size + length


# Begin and end of what system tables say of times, and where nothing is to be negative.
SPANS = {
    "gaps": ("gap_from", "gap_to"), "alerts": ("since", "time"),
    "late": ("window_start", "window_end"),
}
AMOUNTS = {"late": "received_late_us", "limits": "value", "duplicates": "readings"}


def metrics(tidegate):
    """Every metric and its value; fails where one is negative."""
    address, = [line.split(" on ")[1].split()[0] for line in list(tidegate.lines)
                if line.startswith("metrics on http://")]
    with urllib.request.urlopen(address, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    negative = {name: text for name, text in values.items() if not float(text) >= 0}
    assert not negative, f"negative: {negative}"
    return values


def spans(tidegate):
    """System tables: what ends before it begins, and amounts below nothing."""
    there = {row["n"] for row in tidegate.sql(
        "SELECT table_name AS n FROM information_schema.tables WHERE table_schema = 'system'")}
    assert there >= SPANS.keys() | AMOUNTS.keys(), sorted(there)
    for table, (begin, end) in SPANS.items():
        bad = tidegate.sql(f"SELECT * FROM system.{table} WHERE {end} < {begin}")
        assert not bad, f"system.{table}: {bad[:3]}"
    for table, amount in AMOUNTS.items():
        bad = tidegate.sql(f"SELECT * FROM system.{table} WHERE {amount} < 0")
        assert not bad, f"system.{table}: {bad[:3]}"


def windows(sent):
    """The plain loop: every device's readings, one per second, in whole minutes that are closed."""
    expected = {}
    for name, numbers in sent.items():
        for seq in numbers:
            n, total = expected.get((name, seq // 60), (0, 0.0))
            expected[name, seq // 60] = n + 1, total + value(seq)
    # A window closes when a reading is 5 s beyond its end.
    last = {name: max(numbers) for name, numbers in sent.items()}
    return {key: w for key, w in expected.items() if last[key[0]] >= (key[1] + 1) * 60 + 5}


def seen(tidegate):
    rows = tidegate.sql("SELECT device, to_unixtime(window_start) AS s, n, t_sum, revision "
                        "FROM cold_chain.per_minute")
    assert all(r["revision"] == 0 for r in rows), "a window was revised"
    return {(r["device"], (r["s"] - 1_767_225_600) // 60): (r["n"], r["t_sum"]) for r in rows}


def main():
    port = free_port()
    # A day of silence, by the ticks, would close windows. What a device sends again after the kill
    # it does not mark, so it is told by its number.
    dedup = '[reading.dedup]\nkey = ["device", "seq"]\nhorizon = "30d"\n[reading.fields]'
    pipeline = PIPELINE.replace('"1d"', '"30d"').replace("[reading.fields]", dedup).replace("SOURCE", ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    file = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-clock-")) / "clock"
    file.write_text(CLOCKS[0])
    env = {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
           "DONT_FAKE_MONOTONIC": "1"}
    with Tidegate(pipeline, env=env, more=["--checkpoint-every", "500ms", "--metrics",
                                             "127.0.0.1:0"]) as tidegate:
        tidegate.port()
        devices = {name: Device(port, name, pause_s=0.004) for name in DEVICES}
        for device in devices.values():
            device.start()
        looks = []
        for number, clock in enumerate(CLOCKS):
            file.write_text(clock)
            before, end = sum(d.acknowledged for d in devices.values()), time.monotonic() + EACH_S
            while time.monotonic() < end:
                time.sleep(0.2)
                looks.append(len(metrics(tidegate)))
            eventually(f"acknowledgements with {clock}", lambda: sum(
                d.acknowledged for d in devices.values()) > before)
            if number == 2:
                # What was a day ahead is there when the process comes back an hour behind.
                tidegate.kill()
                file.write_text("-1h")
                tidegate.start()
                tidegate.port()
        sent = {name: device.finish() for name, device in devices.items()}
        doubled, again, _ = judge(tidegate, sent)
        expected = windows(sent)

        def difference():
            found = seen(tidegate)
            keys = [k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)]
            return [(k, found.get(k), expected.get(k)) for k in sorted(keys)]
        try:
            eventually("the windows", lambda: not difference())
        except AssertionError:
            raise AssertionError(difference()[:5]) from None
        metrics(tidegate)
        tidegate.stop()
        spans(tidegate)
        told = list(ticks(tidegate))
        confirm(tidegate, sent)
    assert doubled == 0, doubled
    assert len(expected) > 20, len(expected)
    epochs, times = [t[0] for t in told], [t[1] for t in told]
    assert epochs == list(range(epochs[0], epochs[0] + len(epochs))), "epochs have gaps"
    assert times == sorted(times), "a tick goes back"
    assert times[-1] - times[0] > 20 * 3600 * 10**6, "the clock was not set ahead: no test"
    assert min(looks) > 30, looks
    print(f"{sum(len(s) for s in sent.values())} readings, {len(told)} ticks under {len(CLOCKS)} "
          f"clocks: all forward; {len(expected)} windows as expected, {again} sent again; {len(looks)} "
          f"looks at the metrics, nothing negative")


main()
