"""Tidegate killed (-9) again and again while paho and mqtt.js publish on its endpoint: they connect
again and send what was not acknowledged a second time. Nothing is missing and nothing is there
twice, at QoS 1 and 2, in both versions.

Two devices are mqtt.js as it comes, which does not say that it sends again: of theirs nothing is
missing, and doubled rows are counted and reported."""

import json
import os
import random
import subprocess
import tempfile
import threading

from harness import (ENDPOINT, PATIENCE_S, PIPELINE, Publisher, Tidegate, count_exactly, eventually,
                     free_port, node)

READINGS, KILLS = int(os.environ.get("TIDEGATE_READINGS", "1500")), 4


class NodeDevice:
    """mqtt.js: publishes on and on, and says how many were acknowledged."""

    def __init__(self, port, version, qos, marked=1):
        self.device = f"js{version}-{'through' if marked else 'unmarked'}{qos}"
        self.acknowledged = 0
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            node("mqttjs.js", port, f"{version},{qos},{marked}", READINGS), stdin=subprocess.DEVNULL,
            stdout=self.said, stderr=subprocess.PIPE, text=True)
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


class PahoDevice:
    def __init__(self, port, version, qos):
        self.device = f"paho{version}-through{qos}"
        self.publisher = Publisher(port, self.device, version=version, qos=qos)
        self.sender = threading.Thread(target=self.publisher.send, args=(range(READINGS), 50))
        self.sender.start()

    @property
    def acknowledged(self):
        return self.publisher.acknowledged

    def finish(self):
        self.sender.join(PATIENCE_S)
        self.publisher.finish()


def main():
    moments, port = random.Random(11), free_port()
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
        tidegate.port()
        kinds = [(kind, version, qos) for kind in (PahoDevice, NodeDevice)
                 for version in (4, 5) for qos in (1, 2)]
        devices = [kind(port, version, qos) for kind, version, qos in kinds]
        devices += [NodeDevice(port, 4, qos, marked=0) for qos in (1, 2)]
        total = READINGS * len(devices)
        for kill in range(KILLS):
            moment = (kill + moments.uniform(0.3, 0.9)) * total / (KILLS + 1)
            eventually("the next moment", lambda: sum(d.acknowledged for d in devices) >= moment)
            tidegate.kill()
            tidegate.start()
            tidegate.port()
        for device in devices:
            device.finish()
        count_exactly(tidegate, {d.device: READINGS for d in devices})
        twice = tidegate.sql("SELECT device, count(*) AS n FROM (SELECT device, seq, count(*) AS n "
                             "FROM cold_chain.readings GROUP BY device, seq HAVING count(*) > 1) "
                             "GROUP BY device")
        doubled = {row["device"]: row["n"] for row in twice}
        unmarked = sum(doubled.pop(f"js4-unmarked{qos}", 0) for qos in (1, 2))
        assert not doubled, f"readings in the table twice: {doubled}"
        tidegate.stop()
    print(f"paho and mqtt.js, killed {KILLS} times: {total} acknowledged, 0 lost, "
          f"0 doubled, {unmarked} doubled of those sent again without DUP")


main()
