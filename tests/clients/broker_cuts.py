"""mosquitto behind a bad network: connections of Tidegate are cut, or go silent without an end
(half-open), every second or so, while devices publish at QoS 1. Every number is in the table once.
Tidegate connects at most twice a second.

TIDEGATE_CHAOS_SECONDS makes it longer, TIDEGATE_SEED moves the moments."""

import os
import random
import socket
import struct
import threading
import time

from harness import (PIPELINE, Device, Mosquitto, Tidegate, eventually, judge, subscriber)

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = ["d1", "d2", "d3"]


class Network:
    """Passes bytes on from a port of its own to another."""

    def __init__(self, to):
        self.to, self.links, self.connects = to, [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            self.connects.append(time.monotonic())
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            link = {"near": near, "far": far, "silent": False}
            self.links.append(link)
            for a, b in [(near, far), (far, near)]:
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(link, a, b), daemon=True).start()

    @staticmethod
    def _pass(link, a, b):
        try:
            while data := a.recv(65536):
                if link["silent"]:
                    continue
                b.sendall(data)
        except OSError:
            pass
        if not link["silent"]:
            for end in (a, b):
                end.close()

    def cut(self, half):
        """Ends the newest connection: with a reset for both, or (`half`) for the broker alone,
        so that our side hears nothing any more and no end either."""
        link = self.links[-1]
        if half:
            link["silent"] = True
        for end in [link["far"]] if half else [link["near"], link["far"]]:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def most_per_second(self):
        """Most connections within any second, but for a tenth: they are seen a moment later."""
        return max(sum(1 for t in self.connects if at <= t < at + 0.9) for at in self.connects)


def main():
    moments = random.Random(SEED)
    with Mosquitto() as broker:
        network = Network(broker.port)
        source = subscriber(broker).replace(str(broker.port), str(network.port))
        with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            devices = {name: Device(broker.port, name, pause_s=0.002) for name in DEVICES}
            for device in devices.values():
                device.start()
            cuts, end = 0, time.monotonic() + SECONDS
            while time.monotonic() < end:
                time.sleep(moments.uniform(0.3, 1.5))
                network.cut(half=False)
                cuts += 1
            # One that is half open is left after a PINGREQ without an answer.
            connects = len(network.connects)
            eventually("the last connection", lambda: len(network.connects) > connects)
            network.cut(half=True)
            connects = len(network.connects)
            eventually("the half-open one to be left", lambda: len(network.connects) > connects)
            sent = {name: device.finish() for name, device in devices.items()}
            doubled, again, _ = judge(tidegate, sent)
            tidegate.stop()
        most = network.most_per_second()
    total = sum(len(s) for s in sent.values())
    # `judge` has refused every number that is there more often than its device sent it.
    print(f"{total} readings, {cuts} cuts and one half-open connection: 0 lost, {doubled} doubled, "
          f"{again} sent again by the devices themselves, at most {most} connects in a second")
    assert doubled <= sum(n - 1 for s in sent.values() for n in s.values()) and most <= 2, most


main()
