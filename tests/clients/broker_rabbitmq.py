"""RabbitMQ with its MQTT plugin (3.1.1) as external broker, Tidegate killed (-9) again and again:
nothing is lost. RabbitMQ numbers messages from 1 again on each connection, so that not all that
come again can be recognised: no reading is in the table more often than a tap between the two saw
it delivered under a number that it did not have before.

TIDEGATE_CHAOS_SECONDS makes it longer."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from device import Device
from harness import BINARY, PIPELINE, Tidegate, eventually, free_port, listens, subscriber
from oracle import confirm
from tap import Tap, judge_taken, settle

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


def kill_again_and_again(tidegate, tap):
    """How often."""
    moments, kills, end = random.Random(1), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(moments.uniform(0.3, 1.2))
        wait_for_connection = tap.connection()
        tidegate.kill()
        tidegate.start()
        wait_for_connection()
        kills += 1
    return kills


def main():
    with RabbitMq() as broker:
        tap = Tap(broker.port)
        source = subscriber(tap) + '\nversion = "3.1.1"'
        with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
            # It is subscribed when the first message comes through; until then others may not.
            first = Device(broker.port, "first", pause_s=0.05)
            first.start()
            eventually("the first reading", lambda: tap.confirmed)
            first.finish()
            devices = {name: Device(broker.port, name, pause_s=0.004) for name in ["d1", "d2"]}
            for device in devices.values():
                device.start()
            kills = kill_again_and_again(tidegate, tap)
            sent = {name: device.finish() for name, device in devices.items()}
            settle(tap, broker, sent)
            # Of the first some were published before anybody had subscribed.
            sent["first"] = {seq: n for seq, n in first.sent.items() if ("first", seq) in tap.new}
            doubled, missing = judge_taken(tidegate, tap, sent, lambda *reading: tap.new[reading])
            tidegate.stop()
            rows = confirm(tidegate, sent, doubled)
        assert not missing and all(tap.sessions[1:]), (missing, tap.sessions)
        print(f"RabbitMQ: {rows} readings, tidegate killed {kills} times: 0 lost, {doubled} doubled "
              f"that it sent again under new numbers; {tap.repetitions()} under the old ones")
        found = subprocess.run([BINARY, "doctor", "source", f"mqtt://127.0.0.1:{broker.port}",
                                "--mqtt", "3.1.1"], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, timeout=120)
        print(found.stdout)
        assert found.returncode in (0, 1) and "redelivery" in found.stdout, found


main()
