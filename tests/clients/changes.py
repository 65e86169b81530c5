"""Changes at random while devices publish: steps, aggregates, times, alerts and tables come, change
and go by `tidegate apply` or over a restart or a kill. In the end every table has each window once
and with all of its readings, by plain loops over what was sent; each alert has told of its ends, and
its webhooks are its events.

    TIDEGATE_BINARY=target/release/tidegate python tests/clients/changes.py [SEED ...]

TIDEGATE_CHANGES says how many changes (12). TIDEGATE_KEEP is a folder that gets the data of what
failed. What was refused has to say why and to change nothing. A window that could not be computed again
counts as it stands if `system.windows_kept` says so."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading

from device import publish_packet
from harness import BINARY, START_S, QueryFailed, Tidegate, eventually, free_port
from receiver import SECRET, Receiver

ROUNDS = int(os.environ.get("TIDEGATE_CHANGES", "12"))
# One that lost windows once, one that lost a webhook, and one whose journal forgets (those of three).
SEEDS = [4, 18, 6]
DEVICES = ["d0", "d1", "d2"]
LATE_S = 40
GAP_S, COUNT, STATE_FROM = 8, 7, 50
# Aggregates of a column, each with what it is of a list of values.
AGGREGATES = {"s": ("sum(v)", sum), "lo": ("min(v)", min), "hi": ("max(v)", max),
              "n": ("count(*)", len), "q": ("sum(v * v)", lambda vs: sum(v * v for v in vs))}
WINDOWS = {"per": 'every = "10s"', "hop": 'size = "20s"\nslide = "10s"', "cnt": f"count = {COUNT}",
           "ses": f'gap = "{GAP_S}s"', "st": f'while = "v >= {STATE_FROM}"', "odd": 'every = "10s"',
           "wide": 'every = "30s"'}
ORDERED = ("cnt", "ses", "st")


class Plan:
    """What is configured, and how it can change."""

    def __init__(self, rng, port):
        self.port = port
        self.select = {w: ["n", "hi", *rng.sample(["s", "lo", "q"], rng.randrange(3))] for w in WINDOWS}
        self.wait = {w: {} for w in WINDOWS}
        self.early = dict.fromkeys(WINDOWS)
        self.names = {w: w for w in WINDOWS}
        self.reading = {"disorder": "4s", "idle_close": "1d"}
        self.fields, self.derive, self.wide, self.both = [], 0, False, False
        self.alert, self.dedup, self.order = 90, False, 0

    def copy(self):
        other = object.__new__(Plan)
        other.__dict__ = json.loads(json.dumps(self.__dict__))
        return other

    def mutate(self, rng):
        """One change; what it was."""
        window = rng.choice(list(WINDOWS))
        kind = rng.choice(["select", "select", "wait", "early", "name", "reading", "field", "derive",
                           "wide", "both", "alert", "alert", "order",
                           *["dedup"] * (rng.random() < 0.2)])
        if kind == "select":
            columns = ["n", "hi", *rng.sample(["s", "lo", "q"], rng.randrange(4))]
            rng.shuffle(columns)
            self.select[window] = columns
        elif kind == "wait":
            self.wait[window] = {k: v for k, v in [
                ("disorder", rng.choice(["4s", "9s", "15s"])),
                ("idle_close", rng.choice(["1s", "1h"])),
                ("revise_for", rng.choice(["5s", "30s", "1h"]))] if rng.random() < 0.5}
        elif kind == "early":
            self.early[window] = None if self.early[window] else "1s"
        elif kind == "name":
            self.names[window] = window if self.names[window] != window else f"{window}_too"
        elif kind == "reading":
            self.reading[rng.choice(["disorder"])] = rng.choice(["4s", "6s", "12s"])
            self.reading["idle_close"] = rng.choice(["1s", "1d"])
        elif kind == "field":
            if self.fields and rng.random() < 0.5:
                self.fields.pop(rng.randrange(len(self.fields)))
            else:
                self.fields.append(f"f{rng.randrange(1000)}")
            self.fields = sorted(set(self.fields))
        elif kind == "derive":
            self.derive = rng.randrange(4)
        elif kind == "alert":
            self.alert = rng.choice([None, 80, 90, 95])
        else:
            setattr(self, kind, not getattr(self, kind))
        return f"{kind} {window}" if kind in ("select", "wait", "early", "name") else kind

    def has(self, window):
        return window != "wide" or self.wide

    def toml(self):
        parts = [f"""name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:{self.port}"
topics = ["p/{{device}}"]
[limits]
reading_every = "1s"
[reading]
device = "{{device}}"
time = {{ field = "ts", format = "s" }}
disorder = "{self.reading["disorder"]}"
idle_close = "{self.reading["idle_close"]}"
[reading.fields]
seq = "int64"
v = "int64"
"""]
        parts += [f'{field} = "string"\n' for field in self.fields]
        if self.dedup:
            parts.append('[reading.dedup]\nkey = ["seq"]\n')
        parts.append('[[table]]\nfrom = "readings"\nfreshness = "1s"\n')
        steps = [self.step(w) for w in WINDOWS if self.has(w)]
        if self.derive:
            steps.append('[[step]]\nname = "more"\ntype = "derive"\n'
                         f'set = {{ v2 = "v * {self.derive}" }}\n')
        steps.append('[[step]]\nname = "odds"\ntype = "filter"\nwhere = "v % 2 = 1"\n')
        if self.both:
            steps.append(f'[[step]]\nname = "both"\ntype = "join"\nfrom = "{self.names["per"]}"\n'
                         f'with = "{self.names["odd"]}"\n')
        if self.order:
            steps.reverse()
        parts += steps
        if self.alert is not None:
            parts.append(f"""[[alert]]
name = "hot"
from = "{self.names["per"]}"
fire = "hi > {self.alert}"
max_age = "36500d"
notify = ["ops"]
""")
        parts.append("""[notify.ops]
type = "webhook"
url = "${env:OPS_URL}"
secret = "${env:OPS_SECRET}"
allow_private = true
""")
        return "".join(parts)

    def step(self, window):
        source = "odds" if window == "odd" else "more" if self.derive else "readings"
        select = ", ".join(f'{c} = "{AGGREGATES[c][0]}"' for c in self.select[window])
        waits = "".join(f'{key} = "{value}"\n' for key, value in self.wait[window].items())
        early = f'early = "{self.early[window]}"\n' if self.early[window] else ""
        name = self.names[window]
        return (f'[[step]]\nname = "{name}"\ntype = "window"\nfrom = "{source}"\n{WINDOWS[window]}\n'
                f'{waits}{early}select = {{ {select} }}\n[[table]]\nfrom = "{name}"\n'
                f'name = "{window}"\nfreshness = "1s"\n')


class Fleet:
    """Devices that send on one connection, each by its own clock."""

    def __init__(self, rng, forgets):
        self.rng, self.sent = rng, {d: {} for d in DEVICES}
        self.now = {d: START_S + 1000 * i for i, d in enumerate(DEVICES)}
        self.seq, self.end = 0, {}
        # Of a journal of 256 KiB, half is kept for changes.
        self.pad = {"pad": "x" * 1000} if forgets else {}

    def some(self, count):
        """Readings that come next: a little out of order, some of them late."""
        rng, out = self.rng, []
        for _ in range(count):
            device = rng.choice(DEVICES)
            if rng.random() < 0.06:
                ts = self.now[device] - rng.randrange(5, LATE_S)
            else:
                self.now[device] += rng.choice([1, 1, 1, 1, 2, 3, 3, 12, 25])
                ts = self.now[device] - rng.choice([0, 0, 0, 1, 2, 3])
            if ts >= START_S and ts not in self.sent[device]:
                out.append(self.reading(device, ts, rng.randrange(100)))
        return out

    def reading(self, device, ts, v):
        self.sent[device][ts] = v
        self.seq += 1
        return device, json.dumps({"ts": ts, "seq": self.seq, "v": v, **self.pad})

    def last(self):
        """A while in which windows close by the plan as it is now, and what closes them all."""
        out = []
        for device in DEVICES:
            for _ in range(30):
                self.now[device] += 2
                out.append(self.reading(device, self.now[device], self.rng.randrange(100)))
            self.end[device] = self.now[device] + 60
            for later in 86_400, 60:
                self.now[device] += later
                out.append(self.reading(device, self.now[device], 1))
        return out


def publish(port, readings):
    """Sends them at QoS 1 and waits for all acknowledgements."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(b"\x10\x11\0\4MQTT\4\2\0\0\0\5fleet")
        assert link.recv(4) == b"\x20\x02\0\0"
        out = b"".join(
            publish_packet(f"p/{device}".encode(), packet_id, text.encode())
            for packet_id, (device, text) in enumerate(readings, 1))
        threading.Thread(target=link.sendall, args=(out,), daemon=True).start()
        left = 4 * len(readings)
        while left:
            data = link.recv(min(left, 1 << 16))
            assert data, "the connection was closed"
            left -= len(data)
        link.sendall(b"\xe0\0")


def expected(window, readings):
    """The windows of a device as plain loops find them: by what tells them apart, the values."""
    times = sorted(readings)
    found = {}
    if window in ("per", "odd", "wide", "hop"):
        length, slide = {"per": (10, 10), "odd": (10, 10), "wide": (30, 30), "hop": (20, 10)}[window]
        for ts in times:
            if window != "odd" or readings[ts] % 2 == 1:
                first = ts // slide * slide
                for start in range(first, first - length, -slide):
                    found.setdefault(start, []).append(readings[ts])
        return found
    if window == "ses":
        start, before = None, None
        for ts in times:
            if before is None or ts - before > GAP_S:
                start = ts
            found.setdefault(start, []).append(readings[ts])
            before = ts
        return found
    start = None
    for ts in times:
        if readings[ts] < STATE_FROM:
            start = None
            continue
        start = start or ts
        found.setdefault(start, []).append(readings[ts])
    return found


def windows_of(tidegate, window):
    number = "window_number" if window == "cnt" else "CAST(to_unixtime(window_start) AS BIGINT)"
    return tidegate.sql(f"SELECT *, {number} AS key FROM p.{window}")


def wrong_windows(tidegate, window, fleet, always, since):
    """What of a table is not as it has to be."""
    rows, wrong = windows_of(tidegate, window), []
    for device, readings in fleet.sent.items():
        found = {}
        for row in rows:
            if row["device"] == device and row.get("is_final") is not False:
                if row["key"] in found:
                    wrong.append(("twice", window, device, row))
                found[row["key"]] = row
        if window == "cnt":
            wrong += wrong_counts(device, readings, found, always)
            continue
        # What is after the end may be open, or be told because of silence.
        wanted = {k: v for k, v in expected(window, readings).items() if k < fleet.end[device]}
        found = {k: row for k, row in found.items() if k < fleet.end[device]}
        for key in wanted.keys() - found.keys():
            if since is None or key >= since[device]:
                wrong.append(("missing", window, device, key, wanted[key]))
        for key, row in found.items():
            if key not in wanted:
                wrong.append(("surplus", window, device, row))
                continue
            if since is not None and key < since[device]:
                # It was told before the table went, and stays so.
                continue
            values = {c: AGGREGATES[c][1](wanted[key]) for c in AGGREGATES}
            values["rows"] = len(wanted[key])
            bad = {c: (row[c], v) for c, v in values.items()
                   if (row.get(c) is not None or c in always) and row.get(c) != v}
            if bad:
                wrong.append(("value", window, device, key, row["revision"], bad))
    return wrong


def wrong_counts(device, readings, found, always):
    """Numbers without holes, each reading in one window, but those of the one that is open."""
    total = {c: sum(r[c] for r in found.values()) for c in ("n", "q", "s")
             if c in always or c == "n"}
    if sorted(found) != list(range(len(found))):
        return [("numbers", "cnt", device, sorted(found))]
    left = len(readings) - total["n"]
    # One that is whole is open until its last reading is `disorder` old.
    if not 0 <= left <= COUNT:
        return [("count", "cnt", device, len(readings), total)]
    # The open one has the newest.
    told = sorted(readings)[:len(readings) - left]
    values = [readings[ts] for ts in told]
    bad = {c: (total[c], AGGREGATES[c][1](values)) for c in total
           if total[c] != AGGREGATES[c][1](values)}
    return [("value", "cnt", device, bad)] if bad else []


def wrong_alerts(tidegate, plan, fleet, receiver):
    """Events of each key take turns, the newest says what holds, and the webhooks are the events."""
    events = tidegate.sql("SELECT arrow_cast(time, 'Int64') AS time, keys, status, alert_id, reason, "
                          "notify FROM system.alerts WHERE rule = 'hot' ORDER BY time")
    wrong, last = [], {}
    for event in events:
        device = json.loads(event["keys"])["device"]
        before = last.get(device)
        if event["status"] == (before["status"] if before else "resolved"):
            wrong.append(("turns", device, before, event))
        if before and before["time"] == event["time"]:
            wrong.append(("same time", device, before, event))
        if event["status"] == "resolved" and before and event["alert_id"] != before["alert_id"]:
            wrong.append(("another id", device, before, event))
        last[device] = event
    rows = [r for r in windows_of(tidegate, "per") if r.get("is_final") is not False]
    last_per = {r["device"]: r for r in sorted(rows, key=lambda r: r["key"])}
    for device in DEVICES:
        hot = plan.alert is not None and last_per[device]["hi"] > plan.alert
        status = last[device]["status"] if device in last else "resolved"
        if hot != (status == "firing"):
            wrong.append(("holds", device, hot, last.get(device)))
    told = {}
    for request in receiver.accepted():
        body = json.loads(request["body"])
        event = body["data"]["alert_id"], body["type"].split(".")[1]
        if told.setdefault(request["id"], request["body"]) != request["body"]:
            wrong.append(("another body under one id", request["id"]))
    bodies = [json.loads(body) for body in told.values()]
    heard = sorted((b["data"]["alert_id"], b["type"].split(".")[1]) for b in bodies)
    said = sorted((e["alert_id"], e["status"]) for e in events if e["notify"])
    if heard != said:
        wrong.append(("webhooks", [h for h in heard if h not in said], [s for s in said if s not in heard],
                      len(heard), len(said)))
    return wrong


def kept(tidegate):
    """Windows that could not be computed again: table, device and start."""
    rows = tidegate.sql("SELECT table_name, keys, CAST(to_unixtime(time) AS BIGINT) AS start "
                        "FROM system.windows_kept")
    return {(row["table_name"].split(".")[-1], json.loads(row["keys"])["device"], row["start"])
            for row in rows}


def excused(wrong, kept):
    """What is wrong without that. Counts are judged as a whole."""
    counts = {(table, device) for table, device, _ in kept if table == "cnt"}
    return [w for w in wrong
            if w[0] != "value" or (w[1:4] not in kept if w[1] != "cnt" else w[1:3] not in counts)]


class Run:
    def __init__(self, seed, plan, tidegate, receiver):
        self.rng, self.plan, self.port = random.Random(seed), plan, plan.port
        self.more = tidegate.more
        self.tidegate, self.receiver = tidegate, receiver
        self.fleet = Fleet(self.rng, self.more != MORE)
        self.always = {w: set(self.plan.select[w]) for w in WINDOWS}
        self.since, self.log, self.refused = None, [], 0

    def words(self):
        return [BINARY, "apply", str(self.tidegate.pipeline), "--data", str(self.tidegate.data)]

    def change(self):
        after = self.plan.copy()
        what = [after.mutate(self.rng) for _ in range(self.rng.choice([1, 1, 2, 3]))]
        way = self.rng.choice(["apply", "apply", "apply", "stop", "kill"])
        self.tidegate.pipeline.write_text(after.toml())
        if way == "apply":
            is_done, said = self.apply(what)
        else:
            is_done, said = self.restart(way)
        self.log.append((way, what, "done" if is_done else said))
        if not is_done:
            self.refused += 1
            self.tidegate.pipeline.write_text(self.plan.toml())
            if way != "apply":
                self.tidegate.start()
                self.tidegate.port()
            return
        if after.wide != self.plan.wide and after.wide:
            self.since = dict(self.fleet.now)
        self.plan = after
        for window, columns in self.plan.select.items():
            self.always[window] &= set(columns)

    def apply(self, what):
        """While devices publish, now and then. What a dry run says is what is done."""
        verdicts, meanwhile = [], None
        for more in ["--dry-run"], []:
            if not more and self.rng.random() < 0.4:
                meanwhile = threading.Thread(target=publish, args=(self.port, self.fleet.some(200)))
                meanwhile.start()
            done = subprocess.run([*self.words(), *more], env=self.tidegate.env, text=True,
                                  capture_output=True)
            said = done.stdout + done.stderr
            assert done.returncode in (0, 1), (what, said)
            if done.returncode == 1:
                assert "error: " in said and "nothing was changed" in said, said
            verdicts.append(done.returncode == 0)
        if meanwhile:
            meanwhile.join()
        # What the journal has forgotten can be more by then, and windows final.
        assert verdicts[0] == verdicts[1] or self.more != MORE, (what, "a dry run says otherwise", said)
        return verdicts[1], said

    def restart(self, way):
        self.tidegate.stop() if way == "stop" else self.tidegate.kill()
        self.tidegate.more = ["--workers", str(self.rng.choice([1, 2, 3])), *self.more]
        self.tidegate.start()

        def ready():
            said = "\n".join(self.tidegate.lines)
            if self.tidegate.process.poll() is not None:
                return "ended"
            return "ready: " in said and "ready"
        state = eventually("a start", ready)
        return state == "ready", "\n".join(self.tidegate.lines)

    def all(self):
        publish(self.port, self.fleet.some(60))
        for _ in range(ROUNDS):
            publish(self.port, self.fleet.some(self.rng.choice([5, 20, 60, 120])))
            self.change()
        publish(self.port, self.fleet.some(30))
        publish(self.port, self.fleet.last())
        seen = {}

        def right():
            stay, wrong = kept(self.tidegate), []
            for window in WINDOWS:
                if window != "wide" or (self.plan.wide and self.since):
                    since = self.since if window == "wide" else None
                    wrong += wrong_windows(self.tidegate, window, self.fleet,
                                           self.always[window], since)
            wrong += wrong_alerts(self.tidegate, self.plan, self.fleet, self.receiver)
            seen["wrong"], seen["kept"] = excused(wrong, stay), stay
            return not seen["wrong"]
        try:
            eventually("the windows", right)
        except AssertionError:
            lines = [*self.log, *seen["wrong"][:20], seen["kept"]]
            raise AssertionError("\n".join(map(str, lines))) from None
        return len(seen["kept"])


MORE = ["--checkpoint-every", "2s", "--recompute-every", "1s"]
# The journal forgets its beginning soon.
FORGETS = ["--journal-max", "256KiB", "--journal-keep", "1us"]


def run(seed):
    plan, receiver = Plan(random.Random(seed), free_port()), Receiver()
    receiver.become(200)
    env = {"OPS_URL": receiver.url, "OPS_SECRET": SECRET}
    more = MORE if seed % 3 else MORE + FORGETS
    with Tidegate(plan.toml(), env=env, more=more) as tidegate:
        tidegate.port()
        one = Run(seed, plan, tidegate, receiver)
        try:
            stayed = one.all()
        except (AssertionError, QueryFailed, OSError) as error:
            if tidegate.process.poll() is not None:
                error = f"tidegate ended with {tidegate.process.returncode}: {error}"
            if keep := os.environ.get("TIDEGATE_KEEP"):
                if tidegate.process.poll() is None:
                    tidegate.stop()
                shutil.copytree(tidegate.folder, f"{keep}/{seed}", dirs_exist_ok=True)
                with open(f"{keep}/{seed}/sent.json", "w") as file:
                    json.dump(one.fleet.sent, file)
            raise AssertionError(f"seed {seed}: {error}") from None
        tidegate.stop()
    done = len(one.log) - one.refused
    print(f"seed {seed}: {one.fleet.seq} readings, {done} changes, {one.refused} refused, "
          f"{stayed} windows kept: all exact", flush=True)


def main():
    for seed in map(int, sys.argv[1:] or SEEDS):
        run(seed)


main()
