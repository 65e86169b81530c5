"""Soak: Tidegate at half of what it can take, with checkpoints, a slow webhook receiver and a slow
object store. Memory, files, threads, the journal and temporary files are sampled every second; a
line through the second half of the samples must be flat. (A run below a minute has too few of them
for a line: the least of the last third is compared with the greatest of the first.) In the end
every device's readings are exact: count, least, greatest, sum, and sum of squares (of numbers
modulo 65,536, which fits).

    TIDEGATE_SOAK_SECONDS=1800 TIDEGATE_BINARY=target/release/tidegate python tests/clients/soak.py

TIDEGATE_SOAK_RATE sets the rate in messages per second instead of measuring what it can take."""

import os
import socket
import threading
import time

from harness import ALERT, ENDPOINT, PIPELINE, START_S, Tidegate, eventually, free_port
from receiver import SECRET, Receiver
from s3 import S3

SECONDS = float(os.environ.get("TIDEGATE_SOAK_SECONDS", "20"))
# A short run has no time to measure.
SHORT = SECONDS < 60
RATE = float(os.environ.get("TIDEGATE_SOAK_RATE", "1000" if SHORT else "0"))
MEASURE_S = 4
DEVICES = 50
BURST = 20
# Sent and not acknowledged, at most: beyond it the blaster waits, as a device does.
IN_FLIGHT = 4000
# Flat is what would add less than this over the whole run, or has added less in a short one.
# (Threads for blocking calls come and go by the dozen.)
GROWTH_MAX = {"rss_mb": 64, "files": 32, "threads": 32, "journal_mb": 64, "temporary": 4}


class Blaster(threading.Thread):
    """All devices over one connection, at a given rate; it counts what is acknowledged."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.link = socket.create_connection(("127.0.0.1", port))
        self.link.sendall(b"\x10\x13\0\4MQTT\4\2\0\0\0\7blaster")
        assert self.link.recv(4) == b"\x20\x02\0\0"
        self.rate, self.seq, self.sent, self.acknowledged = float("inf"), 0, 0, 0
        self.enough, self.error, self.packet_id = threading.Event(), None, 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        left = 0
        while data := self.link.recv(1 << 16):
            left += len(data)
            self.acknowledged += left // 4
            left %= 4

    def _round(self):
        """The next reading of every device."""
        out = bytearray()
        # One device alone is too warm now and then: a slow receiver takes only some 25 a second.
        hot = 40 if self.seq // 100 % 3 == 1 else 0
        for device in range(DEVICES):
            text = (f'{{"seq": {self.seq}, "ts": {START_S + self.seq * 6 / 10}, '
                    f'"temperature": {20.0 + (0 if device else hot)}}}').encode()
            topic = f"plant/north/s{device}/telemetry".encode()
            self.packet_id = self.packet_id % 65_535 + 1
            length = 4 + len(topic) + len(text)
            assert length < 0x4000
            out += bytes([0x32, length & 0x7F | 0x80, length >> 7])
            out += len(topic).to_bytes(2, "big") + topic + self.packet_id.to_bytes(2, "big") + text
        self.seq += 1
        self.sent += DEVICES
        return out

    def run(self):
        try:
            due, pace = time.monotonic(), self.rate
            while not self.enough.is_set():
                if self.rate != pace:
                    due, pace = time.monotonic(), self.rate
                if self.sent - self.acknowledged > IN_FLIGHT:
                    time.sleep(0.001)
                    continue
                self.link.sendall(b"".join(self._round() for _ in range(BURST)))
                due += BURST * DEVICES / self.rate
                time.sleep(max(0, due - time.monotonic()))
                # What it could not send in time it does not send later at once.
                due = max(due, time.monotonic() - 1)
        except BaseException as error:
            self.error = error
            raise


def samples_of(tidegate):
    process = f"/proc/{tidegate.process.pid}"
    with open(f"{process}/statm") as statm:
        rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    journal, temporary = 0, 0
    for folder, _, names in os.walk(tidegate.data):
        for name in names:
            temporary += name.endswith((".tmp", ".new")) or "#" in name
            if folder.endswith("journal"):
                try:
                    journal += os.path.getsize(os.path.join(folder, name))
                except FileNotFoundError:
                    pass
    return {"rss_mb": rss / 2**20, "files": len(os.listdir(f"{process}/fd")),
            "threads": len(os.listdir(f"{process}/task")), "journal_mb": journal / 2**20,
            "temporary": temporary}


def slope(times, values):
    """Of the line with the least squares, per second."""
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    return sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values)) / spread


def growth(times, values):
    """What the run would add by the line, or what a short one has added for certain."""
    half = len(times) // 2
    times, values = times[half:], values[half:]
    if SHORT:
        third = max(len(values) // 3, 1)
        return min(values[-third:]) - max(values[:third])
    return slope(times, values) * SECONDS


def rows(tidegate):
    return tidegate.sql(
        "SELECT device, count(*) AS n, min(seq) AS low, max(seq) AS high, sum(seq) AS total, "
        "sum((seq % 65536) * (seq % 65536)) AS squares FROM cold_chain.readings GROUP BY device")


def squares(n):
    """Sum of the squares of the numbers below `n`, each modulo 65,536."""
    below = lambda k: (k - 1) * k * (2 * k - 1) // 6
    return n // 65_536 * below(65_536) + below(n % 65_536)


def judge(tidegate, blaster):
    last = {}

    def look():
        last["rows"] = rows(tidegate)
        return sum(r["n"] for r in last["rows"]) >= blaster.sent
    eventually("all readings", look)
    n = blaster.seq
    expected = {"n": n, "low": 0, "high": n - 1, "total": n * (n - 1) // 2,
                "squares": squares(n)}
    assert len(last["rows"]) == DEVICES, len(last["rows"])
    for row in last["rows"]:
        assert {k: row[k] for k in expected} == expected, (row, expected)


def run(s3, receiver, tidegate, port):
    blaster = Blaster(port)
    if RATE:
        blaster.rate = RATE
    blaster.start()
    if not RATE:
        time.sleep(MEASURE_S)
        # What goes through the pipeline counts, not what the disk takes.
        began = tidegate.sql("SELECT count(*) AS n FROM cold_chain.readings")[0]["n"], time.time()
        time.sleep(MEASURE_S)
        through = tidegate.sql("SELECT count(*) AS n FROM cold_chain.readings")[0]["n"], time.time()
        blaster.rate = max((through[0] - began[0]) / (through[1] - began[1]) / 2, 100)
    s3.proxy.mode, s3.proxy.slow_s = "slow", 0.5
    receiver.become("slow")
    start, times, samples = time.monotonic(), [], []
    while time.monotonic() < start + SECONDS:
        time.sleep(1)
        assert tidegate.process.poll() is None, tidegate.lines
        assert blaster.error is None, blaster.error
        times.append(time.monotonic() - start)
        samples.append(samples_of(tidegate))
    blaster.enough.set()
    blaster.join()
    s3.proxy.mode = "good"
    receiver.become(200)
    eventually("all acknowledgements", lambda: blaster.acknowledged == blaster.sent)
    judge(tidegate, blaster)
    return blaster, times, samples


def main():
    port, receiver = free_port(), Receiver()
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    with S3(proxied=True) as s3:
        env = {**s3.env, "OPS_URL": receiver.url, "OPS_SECRET": SECRET}
        # What no recovery needs goes at once: for an hour, the journal would only grow.
        more = ["--checkpoint-every", "5s", "--journal-keep", "1s"]
        with Tidegate(PIPELINE.replace("SOURCE", source).replace('"1s"', '"2s"') + ALERT,
                      tables="s3://plant/history", env=env, more=more) as tidegate:
            tidegate.port()
            blaster, times, samples = run(s3, receiver, tidegate, port)
            webhooks = len(receiver.accepted())
            tidegate.stop()
    print(f"{blaster.sent} messages at {blaster.rate:.0f}/s, all exact; {webhooks} webhooks")
    bad = []
    for name, most in GROWTH_MAX.items():
        values = [s[name] for s in samples]
        added = growth(times, values)
        print(f"  {name:10}  first {values[0]:8.1f}  least {min(values):8.1f}  greatest "
              f"{max(values):8.1f}  last {values[-1]:8.1f}  grows by {added:8.1f}")
        if added > most:
            bad.append(f"{name} grows by {added:.1f} over the run, at most {most}")
    assert not bad, bad


main()
