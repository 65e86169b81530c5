"""What the scripts beside this file share: Tidegate and mosquitto as child processes.

Every wait has a condition and a deadline (90 s, or TIDEGATE_PATIENCE_S). Each script ends with exit
code 0, or with an AssertionError that says what was expected.
"""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PATIENCE_S = float(os.environ.get("TIDEGATE_PATIENCE_S", "90"))
START_S = 1_767_225_600  # 2026-01-01T00:00:00Z
BINARY = os.environ.get("TIDEGATE_BINARY", "target/debug/tidegate")

ENDPOINT = """type = "endpoint"
listen = "127.0.0.1:0"
topics = ["plant/{site}/{device}/telemetry"]"""

PIPELINE = """name = "cold-chain"

[source]
SOURCE

[reading]
format     = "json"
device     = "{device}"
time       = { field = "ts", format = "s" }
disorder   = "5s"
idle_close = "1d"
[reading.fields]
seq         = "int64"
temperature = { type = "float64", min = -60, max = 120, required = true }

[[step]]
name   = "per_minute"
type   = "window"
every  = "1m"
by     = ["site", "device"]
select = { n = "count(*)", t_sum = "sum(temperature)", t_max = "max(temperature)" }

[[table]]
from      = "readings"
freshness = "1s"

[[table]]
from      = "per_minute"
partition = ["site"]
freshness = "1s"
"""


# An alert on its windows; whom it tells is in the environment.
ALERT = """
[[alert]]
name    = "too-warm"
from    = "per_minute"
fire    = "t_max > 50"
clear   = "t_max < 40"
max_age = "36500d"
notify  = ["ops"]

[notify.ops]
type          = "webhook"
url           = "${env:OPS_URL}"
secret        = "${env:OPS_SECRET}"
timeout       = "2s"
allow_private = true
"""


def eventually(what, look):
    """Calls `look` until it gives something true, with growing pauses."""
    deadline, pause, last = time.monotonic() + PATIENCE_S, 0.01, None
    while time.monotonic() < deadline:
        try:
            last = look()
            if last:
                return last
        except QueryFailed as error:
            last = error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.3)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}; last: {last!r}")


PORT_NUMBERS = itertools.count()


def free_port():
    """A port at which nobody listens, each once per process. It is below those that the system
    gives to whoever connects or asks for none: they do not take it before it is used."""
    while True:
        port = 20_000 + (os.getpid() * 31 + next(PORT_NUMBERS)) % 12_000
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def payload(seq):
    """Reading number `seq`, one per second; values whose sums are exact."""
    return json.dumps({"seq": seq, "ts": START_S + seq, "temperature": value(seq)})


def value(seq):
    return 20.0 + (seq % 10) / 2


def node(script, *arguments):
    """The command that runs a script of node/ with the packages that `npm ci` put somewhere."""
    folder = pathlib.Path(__file__).parent / "node"
    packages = pathlib.Path(os.environ.get("TIDEGATE_NODE", folder)).resolve() / "node_modules"
    # Node looks for packages beside the script, so it is told to look elsewhere too.
    return ["env", f"NODE_PATH={packages}", "node", str(folder / script), *map(str, arguments)]


class QueryFailed(Exception):
    pass


class Tidegate:
    """`tidegate run` on one pipeline in a folder of its own, and `tidegate sql` on its data."""

    def __init__(self, pipeline, tables=None, env=None, more=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-clients-"))
        self.data = self.folder / "data"
        self.pipeline = self.folder / "pipeline.toml"
        self.pipeline.write_text(pipeline)
        # What `run` prints on standard output, one start after the other.
        self.printed = self.folder / "printed"
        self.tables = ["--tables", tables] if tables else []
        self.more = list(more)
        self.env = {**os.environ, **(env or {})}
        self.process, self.lines = None, []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, error, trace):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if kind:
            print("--- tidegate said ---", *self.lines, sep="\n", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        command = [BINARY, "run", self.pipeline, "--data", self.data, *self.tables, *self.more]
        self.lines = []
        with open(self.printed, "ab") as out:
            self.process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()

    @staticmethod
    def _read(process, lines):
        for line in process.stderr:
            lines.append(line.rstrip())

    def port(self, what="endpoint"):
        """Port of the endpoint (or of "http"), when it is ready."""
        def look():
            assert self.process.poll() is None, f"tidegate ended: {self.lines}"
            found = re.search(rf"ready.*{what} listening on 127\.0\.0\.1:(\d+)",
                              "\n".join(list(self.lines)))
            return found and int(found[1])
        return eventually("the ready line", look)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ask(self, *words):
        """What a command of ours prints on standard output."""
        return self.ask_both(*words)[0]

    def ask_both(self, *words, codes=(0,)):
        """What it prints on standard output, and on standard error."""
        done = subprocess.run([BINARY, *map(str, words)], env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode in codes, (words, done.returncode, done.stderr)
        return done.stdout, done.stderr

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=PATIENCE_S)
        assert code == 0, f"exit code {code} after Ctrl-C"

    def sql(self, query):
        # Without --tables: the data folder knows where they are.
        command = [BINARY, "sql", "--data", self.data, "-o", "json", query]
        done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode:
            raise QueryFailed(f"{query}: {done.stderr}")
        text = done.stdout.strip()
        if text.startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines()]

    def per_device(self):
        """Rows, sum of temperatures and sum of numbers of each device."""
        rows = self.sql("SELECT device, count(*) AS n, sum(temperature) AS t, sum(seq) AS q "
                        "FROM cold_chain.readings GROUP BY device")
        return {r["device"]: (r["n"], r["t"], r["q"]) for r in rows}

    def wait_for(self, expected):
        """Waits until `per_device` is exactly as expected."""
        last = {}

        def look():
            last["seen"] = self.per_device()
            return last["seen"] == expected
        try:
            eventually("the expected readings", look)
        except AssertionError:
            raise AssertionError(f"expected {expected}\nbut found {last}") from None


def totals(seqs):
    """What `per_device` must show for readings with these numbers."""
    seqs = list(seqs)
    return len(seqs), sum(value(s) for s in seqs), sum(seqs)


def count_exactly(tidegate, expected):
    """Waits until every number of every device is there; gives how many rows are doubled."""
    query = ("SELECT device, count(DISTINCT seq) AS d, count(*) AS n, min(seq) AS low, "
             "max(seq) AS high FROM cold_chain.readings GROUP BY device")

    def look():
        rows = {r["device"]: r for r in tidegate.sql(query)}
        seen = {device: row["d"] for device, row in rows.items()}
        if any(seen.get(d, 0) > n for d, n in expected.items()) or set(seen) - set(expected):
            raise AssertionError(f"more than was sent: {rows}")
        return seen == expected and rows
    rows = eventually(f"{expected}", look)
    for device, row in rows.items():
        assert (row["low"], row["high"]) == (0, expected[device] - 1), row
    return sum(row["n"] - row["d"] for row in rows.values())


class Mosquitto:
    """A broker that keeps every message over a restart (it writes its store at SIGTERM), on one
    port. `more` is more configuration: with SAVE_ALWAYS it keeps them over SIGKILL too."""

    DEFAULTS = ""
    RELIABLE = """persistence true
max_queued_messages 0
max_queued_bytes 0
max_inflight_messages 0
"""
    SAVE_ALWAYS = "autosave_interval 1\nautosave_on_changes true\n"

    def __init__(self, more="", settings=RELIABLE):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-broker-"))
        self.port, self.process = free_port(), None
        self.log = self.folder / "log"
        self.config = self.folder / "mosquitto.conf"
        self.config.write_text(f"""
listener {self.port} 127.0.0.1
allow_anonymous true
user root
persistence_location {self.folder}/
{settings}{more}
log_dest file {self.log}
log_type all
""")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        broker = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.process = subprocess.Popen(
            [broker, "-c", self.config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually("the broker", lambda: listens(self.port))

    def kill(self):
        """SIGKILL: it writes nothing."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM: it writes its store and ends."""
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_S)

    def wait_for_subscription(self, client, topic):
        """Until the broker's log shows that this client subscribed."""
        def look():
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            return any(client in line and topic in line for line in text.splitlines())
        eventually(f"{client} to subscribe to {topic}", look)


def subscriber(broker):
    """The source that reads from a broker."""
    return f"""type = "mqtt"
url = "mqtt://127.0.0.1:{broker.port}"
topics = ["plant/{{site}}/{{device}}/telemetry"]
qos = 1
client_id = "tidegate-test\""""


def paho_client():
    """paho's Client without a fault of it: when it fails to connect twice in a row, it sends QoS 2
    messages that it had released again as new ones (against 4.3.3 of the standard)."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import MessageState

    class Client(mqtt.Client):
        def _messages_reconnect_reset_out(self):
            # Others publish meanwhile.
            with self._out_message_mutex:
                released = [message for message in self._out_messages.values()
                            if message.state == MessageState.MQTT_MS_RESEND_PUBREL]
                super()._messages_reconnect_reset_out()
                for message in released:
                    message.state = MessageState.MQTT_MS_RESEND_PUBREL
    return Client


def lasting_session(**properties):
    """Arguments of paho's version 5 `connect` for a session that outlives its connection."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    wishes = Properties(PacketTypes.CONNECT)
    wishes.SessionExpiryInterval = 3600
    for name, number in properties.items():
        setattr(wishes, name, number)
    return {"clean_start": False, "properties": wishes}


class Publisher:
    """A paho device: reconnects by itself and sends again what was not acknowledged, counts what
    was."""

    def __init__(self, port, device, in_flight=20, version=4, qos=1):
        import paho.mqtt.client as mqtt
        self.mqtt, self.qos, self.acknowledged, self.sent = mqtt, qos, 0, 0
        self.topic = f"plant/north/{device}/telemetry"
        kept = {"clean_session": False} if version == 4 else {}
        self.client = paho_client()(mqtt.CallbackAPIVersion.VERSION2, client_id=device,
                                    protocol=mqtt.MQTTProtocolVersion(version), **kept)
        self.client.on_publish = self._on_publish
        self.client.max_inflight_messages_set(in_flight)
        self.client.reconnect_delay_set(0.05, 0.2)
        self.client.connect("127.0.0.1", port, **(lasting_session() if version == 5 else {}))
        self.client.loop_start()

    def _on_publish(self, *_):
        self.acknowledged += 1

    def send(self, seqs, in_flight=200, pause_s=0):
        """Queues readings, never more than `in_flight` ahead of the acknowledgements, one every
        `pause_s`; what it is behind with it makes up for."""
        due = time.monotonic()
        for seq in seqs:
            due += pause_s
            time.sleep(max(due - time.monotonic(), 0))
            info = self.client.publish(self.topic, payload(seq), qos=self.qos)
            assert info.rc in (self.mqtt.MQTT_ERR_SUCCESS, self.mqtt.MQTT_ERR_NO_CONN), info
            self.sent += 1
            deadline = time.monotonic() + PATIENCE_S
            while self.sent - self.acknowledged > in_flight:
                assert time.monotonic() < deadline, f"stuck at {self.acknowledged} of {self.sent}"
                time.sleep(0.001)

    def finish(self):
        eventually("all acknowledgements", lambda: self.acknowledged >= self.sent)
        assert self.acknowledged == self.sent, (self.acknowledged, self.sent)
        self.client.disconnect()
        self.client.loop_stop()


CLOSING = 10_000
DEVICES = ["d1", "d2", "d3"]


def publish(port, seqs, closing=True):
    """Three devices publish these numbers at QoS 1, and with `closing` one much later, which closes
    their windows. Gives what `per_device` must show."""
    for device in DEVICES:
        publisher = Publisher(port, device)
        publisher.send([*seqs, CLOSING] if closing else seqs)
        publisher.finish()
    return {device: totals([*seqs, CLOSING] if closing else seqs) for device in DEVICES}
