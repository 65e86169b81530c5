"""Tidegate killed (-9) again and again while paho and mqtt.js publish on its endpoint: they connect
again and send what was not acknowledged a second time. Nothing is missing and nothing is there
twice, at QoS 1 and 2, in both versions: so say `tidegate sql` and DuckDB.

Some devices are mqtt.js as it comes, which does not say that it sends again: what they send again
is a new message. A tap counts how often they sent each reading, and how often that was
acknowledged: as often at most, and at least, it is there.

Without more, ten devices publish 1,500 readings each (TIDEGATE_READINGS) as fast as they can, and
Tidegate is killed four times. With TIDEGATE_CHAOS_SECONDS, TIDEGATE_DEVICES (50) publish
TIDEGATE_RATE (2000) messages per second, all together, for so long, and it is killed every half to
ten seconds. TIDEGATE_SEED moves the moments."""

import json
import os
import random
import subprocess
import tempfile
import threading
import time

from harness import (ENDPOINT, PATIENCE_S, PIPELINE, Publisher, Tidegate, count_exactly, eventually,
                     free_port, node)
from oracle import confirm
from tap import Tap

SEED = int(os.environ.get("TIDEGATE_SEED", "11"))
SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "0"))
DEVICES = int(os.environ.get("TIDEGATE_DEVICES", "50"))
RATE = float(os.environ.get("TIDEGATE_RATE", "2000"))
READINGS = (int(SECONDS * RATE / DEVICES) if SECONDS
            else int(os.environ.get("TIDEGATE_READINGS", "1500")))
PAUSE_S = DEVICES / RATE if SECONDS else 0
KILLS = 4
# A run that is this long is killed at least so often, and has nearly the rate that was asked for.
LONG_S, KILLS_MIN, RATE_MIN = 300, 60, 0.95
# Of mqtt.js there are so many at most: each is a process.
SETS_OF_NODE_MAX = 2
KINDS = [(version, qos) for version in (4, 5) for qos in (1, 2)]


class NodeDevice:
    """mqtt.js: publishes on and on, and says how many were acknowledged."""

    def __init__(self, port, version, qos, number, marked=1):
        self.device = f"js{version}-{'through' if marked else 'unmarked'}{qos}-{number}"
        self.acknowledged, self.marked = 0, marked
        self.said = tempfile.TemporaryFile("w+")
        self.qos, self.tap = qos, None if marked else Tap(port, publisher="near")
        to = port if marked else self.tap.port
        self.process = subprocess.Popen(
            node("mqttjs.js", to, f"{version},{qos},{marked},{number}", READINGS, 1000 * PAUSE_S),
            stdin=subprocess.DEVNULL, stdout=self.said, stderr=subprocess.PIPE, text=True)
        self.errors = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            if line.startswith("acknowledged "):
                self.acknowledged = int(line.split()[1])
            else:
                self.errors.append(line)

    def finish(self):
        code = self.process.wait(timeout=PATIENCE_S)
        self.reader.join(PATIENCE_S)
        self.said.seek(0)
        said = self.said.read()
        assert code == 0, self.errors
        acknowledged = json.loads(said)[self.device]
        assert sorted(acknowledged) == list(range(READINGS)), said[:200]

    def judge_unmarked(self, tidegate):
        """Each reading is there as often as it was sent, or less where that was not acknowledged,
        or known by its packet id (QoS 2). How many rows there are beyond one of each."""
        rows = tidegate.sql("SELECT seq, count(*) AS n FROM cold_chain.readings "
                            f"WHERE device = '{self.device}' GROUP BY seq")
        assert not self.tap.problems, self.tap.problems[:5]
        for row in rows:
            reading, n = (self.device, row["seq"]), row["n"]
            least = self.tap.confirmed[reading] if self.qos == 1 else 1
            assert least <= n <= self.tap.delivered[reading], (
                f"{reading}: {n} rows; connection:packet id {self.tap.history[reading]}, "
                f"{self.tap.confirmed[reading]} times acknowledged")
        return sum(row["n"] for row in rows) - len(rows)


class PahoDevice:
    marked = 1

    def __init__(self, port, version, qos, number):
        self.device = f"paho{version}-through{qos}-{number}"
        self.publisher = Publisher(port, self.device, version=version, qos=qos)
        self.sender = threading.Thread(target=self.publisher.send,
                                       args=(range(READINGS), 50, PAUSE_S))
        self.sender.start()

    @property
    def acknowledged(self):
        return self.publisher.acknowledged

    def finish(self):
        self.sender.join(PATIENCE_S)
        self.publisher.finish()


def fleet(port):
    """Two of mqtt.js as it comes, of the others as many of each kind as there are to be."""
    devices = [NodeDevice(port, 4, qos, 0, marked=0) for qos in (1, 2)]
    if not SECONDS:
        return devices + [kind(port, version, qos, 0) for kind in (PahoDevice, NodeDevice)
                          for version, qos in KINDS]
    for number in range(SETS_OF_NODE_MAX):
        devices += [NodeDevice(port, version, qos, number) for version, qos in KINDS]
    for number in range(DEVICES - len(devices)):
        devices.append(PahoDevice(port, *KINDS[number % len(KINDS)], number))
    return devices


def disturb(tidegate, devices):
    """Kills and starts again, at moments that are counted in acknowledgements, or in a long run
    every now and then. How often."""
    moments, kills, total = random.Random(SEED), 0, READINGS * len(devices)
    acknowledged = lambda: sum(d.acknowledged for d in devices)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end if SECONDS else kills < KILLS:
        if SECONDS:
            time.sleep(0.5 + 9.5 * moments.random() ** 3)
        else:
            moment = (kills + moments.uniform(0.3, 0.9)) * total / (KILLS + 1)
            eventually("the next moment", lambda: acknowledged() >= moment)
        tidegate.kill()
        tidegate.start()
        tidegate.port()
        kills += 1
    # Kills are time in which nobody publishes: what is left comes after them.
    left = [acknowledged(), time.monotonic()]

    def through():
        now = acknowledged()
        if now > left[0]:
            left[:] = now, time.monotonic()
        return now >= 0.99 * total - 100 * len(devices) or time.monotonic() > left[1] + PATIENCE_S
    while not through():
        time.sleep(0.1)
    return kills


def main():
    port = free_port()
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
        tidegate.port()
        began, devices = time.monotonic(), fleet(port)
        kills = disturb(tidegate, devices)
        for device in devices:
            device.finish()
        took_s, total = time.monotonic() - began, READINGS * len(devices)
        count_exactly(tidegate, {d.device: READINGS for d in devices})
        twice = tidegate.sql("SELECT device, sum(n - 1) AS n FROM (SELECT device, seq, count(*) AS n "
                             "FROM cold_chain.readings GROUP BY device, seq HAVING count(*) > 1) "
                             "GROUP BY device")
        doubled = {row["device"]: row["n"] for row in twice}
        unmarked = [d for d in devices if not d.marked]
        again = sum(d.judge_unmarked(tidegate) for d in unmarked)
        assert again == sum(doubled.pop(d.device, 0) for d in unmarked), (again, doubled)
        assert not doubled, f"readings in the table twice: {doubled}"
        tidegate.stop()
        rows = confirm(tidegate, {d.device: range(READINGS) for d in devices}, again)
    print(f"{len(devices)} devices of paho and mqtt.js at {total / took_s:.0f}/s, killed {kills} "
          f"times: {total} acknowledged, 0 lost, 0 doubled, {again} more because mqtt.js sent them "
          f"again without DUP; DuckDB finds the same {rows} rows")
    assert SECONDS < LONG_S or kills >= KILLS_MIN, f"only {kills} kills"
    assert SECONDS < LONG_S or total / took_s >= RATE_MIN * RATE, f"only {total / took_s:.0f}/s"


main()
