"""The system clock is set an hour back, a day ahead, and runs at a tenth and at ten times its speed,
while devices publish and Tidegate is killed once: epochs and ticks only go forward, every reading is
there once (also without `[reading.dedup]`), windows are those of a plain loop in every column, and
nowhere is a time negative that something took: neither in the metrics nor in a system table. That each
clock was the one that Tidegate saw is seen from when it says that it received a message.

The clock is that of libfaketime, for the process under test alone. TIDEGATE_CLOCK_SECONDS is how
long it is set to each (1.2)."""

import glob
import itertools
import json
import os
import pathlib
import struct
import sys
import tempfile
import threading
import time
import urllib.request

from device import judge
from harness import ENDPOINT, PIPELINE, START_S, Publisher, Tidegate, eventually, free_port, value
from oracle import confirm

# What libfaketime reads; the monotonic clock goes on as it does when a real clock is set. (Where it
# reads no speed, it keeps the last one.) Then how far off the clock is, in seconds, or how fast it runs.
CLOCKS = [("+0", 0, None), ("-1h", -3600, None), ("+1d", 86_400, None), ("+0 x0.1", None, 0.1),
          ("+0 x10", None, 10), ("-1h x1", -3600, None), ("+0 x1", 0, None)]
# A message may take so long, and no more is a clock off from what it is set to.
OFF_S = 60
EACH_S = float(os.environ.get("TIDEGATE_CLOCK_SECONDS", "1.2"))
DEVICES = ["d1", "d2", "d3"]
FRAME = struct.Struct("<2sBBIQQII")
FILE_HEADER_BYTES, TICK = 60, 2
# So that there are enough windows, however short it is.
READINGS_MIN = 600

# Says when it received what it is sent.
PROBE = """name = "probe"
[source]
type = "http"
listen = "127.0.0.1:PORT"
[reading]
device = "device"
time = "received"
[reading.fields]
number = "int64"
[[table]]
from = "readings"
freshness = "1s"
"""


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


class Prober:
    """Asks Tidegate what time it is, by messages whose time is when they were received."""

    def __init__(self, port):
        self.url, self.sent = f"http://127.0.0.1:{port}/ingest/probe", []

    def ask(self, clock):
        """One message; remembers between which two moments it was received."""
        body = json.dumps({"device": "probe", "number": len(self.sent)}).encode()
        before = time.monotonic()
        with urllib.request.urlopen(self.url, body, timeout=60) as answer:
            assert answer.status == 202, answer.status
        self.sent.append((clock, before, time.monotonic(), time.time()))

    def judge(self, tidegate):
        """Every clock was the one that is said of it. What each was, in words."""
        rows = eventually("all probes", lambda: self._rows(tidegate))
        said = []
        for clock, of_clock in itertools.groupby(zip(self.sent, rows), lambda pair: pair[0][0]):
            (first, began_s), *_, (last, ended_s) = of_clock
            text, off_s, speed = CLOCKS[clock]
            if speed is None:
                off = began_s - first[3], ended_s - last[3]
                assert all(abs(o - off_s) < OFF_S for o in off), f"{text}: the clock is off by {off}"
                said.append(f"{text}: {off[0]:+.1f} s")
            else:
                # By the clock that nobody set, it was at least and at most so long.
                least_s, most_s = last[1] - first[2], last[2] - first[1]
                took_s = ended_s - began_s
                assert speed / 2 * least_s < took_s < speed * 2 * most_s, (text, took_s, most_s)
                said.append(f"{text}: {took_s:.2f} s in {most_s:.2f} s")
        return said

    def _rows(self, tidegate):
        rows = tidegate.sql("SELECT number, to_unixtime(time) AS s, date_part('microsecond', time) "
                            "AS us FROM probe.readings ORDER BY number")
        assert len(rows) <= len(self.sent), len(rows)
        return len(rows) == len(self.sent) and [
            row["s"] + row["us"] % 1_000_000 / 1e6 for row in rows]


class Sender(threading.Thread):
    """A device that publishes until it is enough, at most one reading in 4 ms; what it sends again
    after a broken connection, it marks."""

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.publisher, self.enough = Publisher(port, name), threading.Event()

    def run(self):
        numbers = itertools.takewhile(lambda _: not self.enough.is_set(), itertools.count())
        self.publisher.send(numbers, pause_s=0.004)

    @property
    def acknowledged(self):
        return self.publisher.acknowledged

    def finish(self):
        """The numbers that it has sent, each once."""
        self.enough.set()
        self.join(90)
        self.publisher.finish()
        return dict.fromkeys(range(self.publisher.sent), 1)


def windows(sent):
    """The plain loop: every device's readings, one per second, in whole minutes that are closed; every
    column of the table."""
    minutes = {}
    for name, numbers in sent.items():
        for seq in numbers:
            minutes.setdefault((name, seq // 60), []).append(value(seq))
    # A window closes when a reading is 5 s beyond its end.
    last = {name: max(numbers) for name, numbers in sent.items()}
    return {
        (name, minute): {
            "site": "north", "device": name, "window_start": START_S + 60 * minute,
            "window_end": START_S + 60 * minute + 60, "n": len(values), "t_sum": sum(values),
            "t_max": max(values), "rows": len(values), "revision": 0,
            "day": time.strftime("%Y-%m-%d", time.gmtime(START_S + 60 * minute)),
        } for (name, minute), values in minutes.items() if last[name] >= (minute + 1) * 60 + 5}


def seen(tidegate):
    """All columns of all rows, with times as numbers."""
    rows = tidegate.sql("SELECT *, to_unixtime(window_start) AS f, to_unixtime(window_end) AS t "
                        "FROM cold_chain.per_minute")
    for row in rows:
        row["window_start"], row["window_end"] = row.pop("f"), row.pop("t")
    found = {(row["device"], (row["window_start"] - START_S) // 60): row for row in rows}
    assert len(found) == len(rows), "a window is there twice"
    return found


def set_to(file, clock):
    """In one step: whoever reads it meanwhile reads the one or the other."""
    new = file.with_suffix(".new")
    new.write_text(clock)
    new.rename(file)


def run(tidegate, devices, prober, file):
    """Every clock in turn. How many metrics there were at each look."""
    looks = []
    for number, (clock, _, _) in enumerate(CLOCKS):
        set_to(file, clock)
        prober.ask(number)
        before, end = sum(d.acknowledged for d in devices.values()), time.monotonic() + EACH_S
        while time.monotonic() < end:
            time.sleep(0.2)
            looks.append(len(metrics(tidegate)))
        eventually(f"acknowledgements with {clock}", lambda: sum(
            d.acknowledged for d in devices.values()) > before)
        prober.ask(number)
        if clock == "+1d":
            # What was a day ahead is there when the process comes back an hour behind.
            tidegate.kill()
            set_to(file, CLOCKS[1][0])
            tidegate.start()
            tidegate.port()
            prober.ask(1)
            prober.ask(1)
    eventually("enough readings", lambda: all(
        d.acknowledged >= READINGS_MIN for d in devices.values()))
    return looks


def main():
    port, probe_port = free_port(), free_port()
    # A day of silence, by the ticks, would close windows.
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    pipeline = PIPELINE.replace('"1d"', '"30d"').replace("SOURCE", source)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-clock-"))
    file, probe = folder / "clock", folder / "probe.toml"
    file.write_text(CLOCKS[0][0])
    probe.write_text(PROBE.replace("PORT", str(probe_port)))
    env = {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
           "DONT_FAKE_MONOTONIC": "1"}
    with Tidegate(pipeline, env=env, more=[probe, "--checkpoint-every", "500ms", "--metrics",
                                           "127.0.0.1:0"]) as tidegate:
        tidegate.port()
        devices, prober = {name: Sender(port, name) for name in DEVICES}, Prober(probe_port)
        for device in devices.values():
            device.start()
        looks = run(tidegate, devices, prober, file)
        sent = {name: device.finish() for name, device in devices.items()}
        doubled, _ = judge(tidegate, sent)
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
        said = prober.judge(tidegate)
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
          f"clocks ({'; '.join(said)}): all forward; {len(expected)} windows as expected, none twice; "
          f"{len(looks)} looks at the metrics, nothing negative")


main()
