"""RabbitMQ with its MQTT plugin (3.1.1) as external broker, Tidegate killed (-9) again and again:
nothing is lost. RabbitMQ numbers messages from 1 again on each connection, so that not all that come
again can be recognised: those are counted, never more than were under way.

TIDEGATE_CHAOS_SECONDS makes it longer."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from harness import (BINARY, PIPELINE, Device, Tidegate, eventually, free_port, listens, subscriber)

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "8"))
# Unacknowledged messages that RabbitMQ lets be under way; its default is 10.
PREFETCH = 50


class RabbitMq:
    """A node of its own in a folder of its own, with a name server of its own."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-rabbitmq-"))
        self.port, self.amqp, self.dist, self.epmd = (free_port() for _ in range(4))
        (self.folder / "rabbitmq.conf").write_text(f"""
listeners.tcp.1 = 127.0.0.1:{self.amqp}
mqtt.listeners.tcp.1 = 127.0.0.1:{self.port}
mqtt.allow_anonymous = true
mqtt.default_user = guest
mqtt.default_pass = guest
mqtt.prefetch = {PREFETCH}
log.console = false
""")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
        self.env = {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"tidegate{self.port}@localhost",
            "RABBITMQ_BASE": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_SCHEMA_DIR": str(self.folder / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(self.dist),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self.process = None

    def __enter__(self):
        server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        self.said = open(self.folder / "said", "w")
        self.process = subprocess.Popen([server], env=self.env, stdin=subprocess.DEVNULL,
                                        stdout=self.said, stderr=self.said,
                                        start_new_session=True)

        def up():
            assert self.process.poll() is None, (self.folder / "said").read_text()
            return listens(self.port)
        eventually("RabbitMQ", up)
        return self

    def __exit__(self, kind, error, trace):
        if kind:
            print((self.folder / "said").read_text()[-2000:], file=sys.stderr)
        # The node is a process group of its own; its name server has left it and is told to end.
        os.killpg(self.process.pid, 9)
        self.process.wait()
        self.said.close()
        subprocess.run(["epmd", "-port", str(self.epmd), "-kill"], env=self.env,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    moments = random.Random(1)
    with RabbitMq() as broker:
        source = subscriber(broker) + '\nversion = "3.1.1"'
        with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
            # It is subscribed when the first message comes through; until then others may not.
            first = Device(broker.port, "first", pause_s=0.05)
            first.start()
            eventually("the first reading", lambda: "first" in tidegate.per_device())
            first.finish()
            devices = {name: Device(broker.port, name, pause_s=0.004) for name in ["d1", "d2"]}
            for device in devices.values():
                device.start()
            kills, end = 0, time.monotonic() + SECONDS
            while time.monotonic() < end:
                time.sleep(moments.uniform(0.3, 1.2))
                tidegate.kill()
                tidegate.start()
                kills += 1
            sent = {name: device.finish() for name, device in devices.items()}
            doubled = count(tidegate, sent)
            tidegate.stop()
        total = sum(len(s) for s in sent.values())
        print(f"RabbitMQ: {total} readings, tidegate killed {kills} times: 0 lost, {doubled} doubled")
        assert doubled <= kills * PREFETCH, doubled
        found = subprocess.run([BINARY, "doctor", "source", f"mqtt://127.0.0.1:{broker.port}",
                                "--mqtt", "3.1.1"], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, timeout=120)
        print(found.stdout)
        assert found.returncode in (0, 1) and "redelivery" in found.stdout, found


def count(tidegate, sent):
    """Nothing is missing; how many rows are doubled."""
    query = ("SELECT device, count(DISTINCT seq) AS d, count(*) AS n FROM cold_chain.readings "
             "WHERE device <> 'first' GROUP BY device")

    def look():
        rows = {r["device"]: r for r in tidegate.sql(query)}
        complete = {d: r["d"] for d, r in rows.items()} == {d: len(s) for d, s in sent.items()}
        return complete and rows
    eventually("all readings", look)
    time.sleep(2)
    return sum(r["n"] - r["d"] for r in tidegate.sql(query))


main()
