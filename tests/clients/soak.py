"""Soak: Tidegate at half of what it can take, with checkpoints, a slow webhook receiver and a slow
object store, and in a long run with somebody (delta-rs) who compacts and vacuums its tables there.
Memory, files, threads, the journal and temporary files (in the data folder, in the folder for temporary
files, open without a name, begun on the object store) are sampled every second; a line through the
second half of the samples must be flat, and is printed as growth in an hour as well. (A run below a
minute has too few of them for a line: the least of the last third is compared with the greatest of the
first.) What was sent is at least 95 % of what was to be sent. In the end every device's readings are
exact: count, least, greatest, sum, and sum of squares (of numbers modulo 65,536, which fits).

    TIDEGATE_SOAK_SECONDS=1800 TIDEGATE_BINARY=target/release/tidegate python tests/clients/soak.py

TIDEGATE_SOAK_RATE sets the rate in messages per second instead of measuring what it can take; else it
says what the limit was: the sender, the acknowledgements, or the way from there into the tables."""

import os
import socket
import subprocess
import sys
import threading
import time

from harness import ALERT, ENDPOINT, PIPELINE, START_S, Tidegate, eventually, free_port
from receiver import SECRET, Receiver
from s3 import S3

SECONDS = float(os.environ.get("TIDEGATE_SOAK_SECONDS", "20"))
# A short run has no time to measure.
SHORT = SECONDS < 60
RATE = float(os.environ.get("TIDEGATE_SOAK_RATE", "1000" if SHORT else "0"))
# While it waits for what it has sent.
IDLE_RATE = 1000
# Before it measures, and while it does: tables show what comes through in steps of some seconds.
WARM_S, MEASURE_S = 5, 20
# What did not reach the tables, or was not sent because acknowledgements did not come, is a limit
# from this share on.
LIMIT_SHARE = 0.2
ACHIEVED_MIN = 0.95
DEVICES = 50
BURST = 20
# Sent and not acknowledged, at most: beyond it the blaster waits, as a device does.
IN_FLIGHT = 4000
# Flat is what would add less than this over the whole run, or has added less in a short one.
# (Threads for blocking calls come and go by the dozen.)
GROWTH_MAX = {"rss_mb": 64, "files": 32, "threads": 32, "journal_mb": 64, "temporary": 4}
TABLES = ["readings", "per_minute"]

# Prints how many files each round took away. Another writer may be faster: the next round sees what
# it did.
COMPACTOR = """
import os, sys, time
from deltalake import DeltaTable
every_s, paths, options = float(sys.argv[1]), sys.argv[2:], dict(os.environ)
os.nice(10)
while True:
    time.sleep(every_s)
    for path in paths:
        try:
            done = DeltaTable(path, storage_options=options).optimize.compact(max_concurrent_tasks=1)
            DeltaTable(path, storage_options=options).vacuum(
                retention_hours=0, enforce_retention_duration=False, dry_run=False, full=False)
            DeltaTable(path, storage_options=options).create_checkpoint()
            print(done["numFilesRemoved"], flush=True)
        except Exception as error:
            if "conflict" not in str(error).lower() and "concurrent" not in str(error).lower():
                raise
"""


class Compactor:
    """delta-rs, every minute (or six times in a run), straight to the object store."""

    def __init__(self, s3):
        options = {**s3.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.server_port}"}
        paths = [f"s3://plant/history/cold_chain/{table}" for table in TABLES]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMPACTOR, str(min(60, SECONDS / 6)), *paths],
            env={**os.environ, **options}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        self.removed, self.errors = [], []
        for stream, lines in ((self.process.stdout, self.removed),
                              (self.process.stderr, self.errors)):
            threading.Thread(target=lambda s=stream, to=lines: to.extend(s), daemon=True).start()

    def check(self):
        assert self.process.poll() is None, "".join(self.errors)

    def stop(self):
        """Ends it, wherever it is; how often it was through a table, and how many files it took
        away."""
        self.check()
        self.process.kill()
        self.process.wait()
        files = sum(map(int, self.removed))
        assert files > 0, "nothing was compacted"
        return len(self.removed), files


class Blaster(threading.Thread):
    """All devices over one connection, at a given rate; it counts what is acknowledged."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.link = socket.create_connection(("127.0.0.1", port))
        self.link.sendall(b"\x10\x13\0\4MQTT\4\2\0\0\0\7blaster")
        assert self.link.recv(4) == b"\x20\x02\0\0"
        self.rate, self.seq, self.sent, self.acknowledged = float("inf"), 0, 0, 0
        self.waited_s, self.heads = 0, {}
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
        # One device alone is too warm now and then: a slow receiver takes only some 25 a second.
        hot = self.seq // 100 % 3 == 1
        start = f'{{"seq": {self.seq}, "ts": {START_S + self.seq * 6 / 10}, "temperature": '
        text, first = f"{start}20.0}}".encode(), f"{start}{60.0 if hot else 20.0}}}".encode()
        out = []
        for head in self._heads(len(text)):
            self.packet_id = self.packet_id % 65_535 + 1
            out += head, self.packet_id.to_bytes(2, "big"), text if out else first
        self.seq += 1
        self.sent += DEVICES
        return b"".join(out)

    def _heads(self, text_bytes):
        """What each device's packet begins with, up to its number."""
        if text_bytes not in self.heads:
            topics = [f"plant/north/s{device}/telemetry".encode() for device in range(DEVICES)]
            lengths = [4 + len(topic) + text_bytes for topic in topics]
            assert max(lengths) < 0x4000
            self.heads[text_bytes] = [
                bytes([0x32, length & 0x7F | 0x80, length >> 7]) + len(topic).to_bytes(2, "big")
                + topic for length, topic in zip(lengths, topics)]
        return self.heads[text_bytes]

    def run(self):
        try:
            due, pace = time.monotonic(), self.rate
            while not self.enough.is_set():
                if self.rate != pace:
                    due, pace = time.monotonic(), self.rate
                if self.sent - self.acknowledged > IN_FLIGHT:
                    before = time.monotonic()
                    time.sleep(0.001)
                    self.waited_s += time.monotonic() - before
                    continue
                self.link.sendall(b"".join(self._round() for _ in range(BURST)))
                due += BURST * DEVICES / self.rate
                time.sleep(max(0, due - time.monotonic()))
                # What it could not send in time it does not send later at once.
                due = max(due, time.monotonic() - 1)
        except BaseException as error:
            self.error = error
            raise


def samples_of(tidegate, s3):
    process = f"/proc/{tidegate.process.pid}"
    with open(f"{process}/statm") as statm:
        rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    journal, temporary = 0, sum(len(names) for _, _, names in os.walk(temporary_of(tidegate)))
    for folder, _, names in os.walk(tidegate.data):
        for name in names:
            temporary += name.endswith((".tmp", ".new")) or "#" in name
            if folder.endswith("journal"):
                try:
                    journal += os.path.getsize(os.path.join(folder, name))
                except FileNotFoundError:
                    pass
    files = os.listdir(f"{process}/fd")
    temporary += sum(is_nameless(f"{process}/fd/{file}") for file in files)
    temporary += len(s3.client.list_multipart_uploads(Bucket="plant").get("Uploads", []))
    return {"rss_mb": rss / 2**20, "files": len(files),
            "threads": len(os.listdir(f"{process}/task")), "journal_mb": journal / 2**20,
            "temporary": temporary}


def temporary_of(tidegate):
    """The folder for temporary files of a process of ours, and of nobody else."""
    return tidegate.folder / "temporary"


def is_nameless(file):
    """Whether an open file has no name any more. (What is only in memory never had one.)"""
    try:
        target = os.readlink(file)
    except FileNotFoundError:
        return False
    return target.startswith("/") and target.endswith(" (deleted)") and "/memfd:" not in target


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


def in_tables(tidegate):
    return tidegate.sql("SELECT count(*) AS n FROM cold_chain.readings")[0]["n"]


def most(tidegate, blaster):
    """What goes through the pipeline in a second, not what the disk takes; and what the limit is."""
    time.sleep(WARM_S)

    def look():
        return (in_tables(tidegate), blaster.acknowledged, blaster.sent, blaster.waited_s,
                time.monotonic())
    began = look()
    time.sleep(MEASURE_S)
    *numbers, took_s = (after - before for before, after in zip(began, look()))
    through, acknowledged, sent, waited = (number / took_s for number in numbers)
    if through < (1 - LIMIT_SHARE) * acknowledged:
        limit = "Tidegate's dataflow or tables: they lag behind the acknowledgements"
    elif waited > LIMIT_SHARE:
        limit = "Tidegate's intake: the sender waits for acknowledgements"
    else:
        limit = "the sender's: Tidegate could take more"
    print(f"in a second, at most: {sent:.0f} sent, {acknowledged:.0f} acknowledged, {through:.0f} into "
          f"the tables; the sender waits {100 * waited:.0f} % of the time for acknowledgements; the "
          f"limit is {limit}", flush=True)
    # Tables show it in steps, which may be of more than what came meanwhile.
    return min(through, acknowledged)


def run(s3, receiver, tidegate, port):
    blaster = Blaster(port)
    if RATE:
        blaster.rate = RATE
    blaster.start()
    if not RATE:
        half = max(most(tidegate, blaster) / 2, 100)
        # What did not come through is no part of what is measured.
        blaster.rate = IDLE_RATE
        eventually("what waits", lambda: in_tables(tidegate) > blaster.acknowledged - IN_FLIGHT * 2)
        blaster.rate = half
    s3.proxy.mode, s3.proxy.slow_s = "slow", 0.5
    receiver.become("slow")
    compactor = None if SHORT else Compactor(s3)
    start, times, samples, sent = time.monotonic(), [], [], blaster.sent
    while time.monotonic() < start + SECONDS:
        time.sleep(1)
        assert tidegate.process.poll() is None, tidegate.lines
        assert blaster.error is None, blaster.error
        if compactor:
            compactor.check()
        times.append(time.monotonic() - start)
        samples.append(samples_of(tidegate, s3))
    achieved = (blaster.sent - sent) / (time.monotonic() - start)
    print(f"{achieved:.0f} messages/s of {blaster.rate:.0f}/s", flush=True)
    if compactor:
        print("compacted {} times, {} files".format(*compactor.stop()), flush=True)
    blaster.enough.set()
    blaster.join()
    s3.proxy.mode = "good"
    receiver.become(200)
    eventually("all acknowledgements", lambda: blaster.acknowledged == blaster.sent)
    judge(tidegate, blaster)
    return blaster, achieved, times, samples


def main():
    port, receiver = free_port(), Receiver()
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    with S3(proxied=True) as s3:
        env = {**s3.env, "OPS_URL": receiver.url, "OPS_SECRET": SECRET}
        # What no recovery needs goes at once: for an hour, the journal would only grow.
        more = ["--checkpoint-every", "5s", "--journal-keep", "1s"]
        tidegate = Tidegate(PIPELINE.replace("SOURCE", source).replace('"1s"', '"2s"') + ALERT,
                            tables="s3://plant/history", env=env, more=more)
        temporary_of(tidegate).mkdir()
        tidegate.env["TMPDIR"] = str(temporary_of(tidegate))
        with tidegate:
            tidegate.port()
            blaster, achieved, times, samples = run(s3, receiver, tidegate, port)
            webhooks = len(receiver.accepted())
            tidegate.stop()
    print(f"{blaster.sent} messages, all exact; {webhooks} webhooks")
    bad = []
    if not SHORT and achieved < ACHIEVED_MIN * blaster.rate:
        bad.append(f"{achieved:.0f} messages/s were sent, {blaster.rate:.0f}/s were to be")
    for name, added_max in GROWTH_MAX.items():
        values = [s[name] for s in samples]
        added, half = growth(times, values), len(values) // 2
        hourly = 3600 * slope(times[half:], values[half:])
        print(f"  {name:10}  first {values[0]:8.1f}  least {min(values):8.1f}  greatest "
              f"{max(values):8.1f}  last {values[-1]:8.1f}  grows by {added:8.1f}, by "
              f"{hourly:8.1f} in an hour")
        if added > added_max:
            bad.append(f"{name} grows by {added:.1f} over the run, at most {added_max}")
    assert not bad, bad


main()
