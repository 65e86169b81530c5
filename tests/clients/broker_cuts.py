"""mosquitto behind a bad network: connections of Tidegate are cut, or go silent without an end
(half-open), every second or so, while devices publish at QoS 1. Every number is in the table once.
Tidegate connects at most twice a second, finds the same session each time and does not subscribe
again.

TIDEGATE_CHAOS_SECONDS makes it longer, TIDEGATE_SEED moves the moments."""

import os
import random
import time

from device import Device
from harness import PIPELINE, Mosquitto, Tidegate, eventually, subscriber
from tap import Tap, judge_taken, settle

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = ["d1", "d2", "d3"]


def most_per_second(connects):
    """Most connections within any second, but for a tenth: they are seen a moment later."""
    return max(sum(1 for t in connects if at <= t < at + 0.9) for at in connects)


def disturb(tap):
    """How many connections were cut; at the end one goes silent."""
    moments, cuts, end = random.Random(SEED), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(moments.uniform(0.3, 1.5))
        cuts += tap.cut()
    # One that is half open is left after a PINGREQ without an answer.
    eventually("the last connection", tap.connected)
    wait_for_connection = tap.connection()
    tap.cut(half=True)
    wait_for_connection()
    return cuts


def main():
    with Mosquitto() as broker:
        tap = Tap(broker.port)
        with Tidegate(PIPELINE.replace("SOURCE", subscriber(tap))) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            devices = {name: Device(broker.port, name, pause_s=0.002) for name in DEVICES}
            for device in devices.values():
                device.start()
            eventually("the first confirmation", lambda: tap.confirmed)
            cuts = disturb(tap)
            sent = {name: device.finish() for name, device in devices.items()}
            settle(tap, broker, sent)
            again = sum(n - 1 for numbers in sent.values() for n in numbers.values())
            doubled, _ = judge_taken(tidegate, tap, sent)
            tidegate.stop()
    most, total = most_per_second(tap.connects), sum(map(len, sent.values()))
    print(f"{total} readings, {cuts} cuts and one half-open connection: 0 lost, {doubled} doubled, "
          f"{again} sent again by the devices themselves, {tap.repetitions()} by the broker; the "
          f"session was there at each of {len(tap.sessions) - 1} later connections; at most {most} "
          f"connects in a second")
    assert tap.sessions[0] is False and all(tap.sessions[1:]), tap.sessions
    assert tap.packets["SUBSCRIBE"] == 1, tap.packets
    # Half of what is cut may be cut again before it is accepted.
    assert len(tap.sessions) > cuts >= 1 and most <= 2, (tap.sessions, cuts, most)


main()
