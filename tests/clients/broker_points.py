"""mosquitto as external broker; Tidegate is killed at each named point of the way from a broker
into the journal (`runtime/src/fault.rs`), while devices publish at QoS 1. After each kill every
number that was sent up to then is in the table once.

It needs a debug build: others have no such points. TIDEGATE_LONG=1 takes each point at its 1st, 2nd
and 10th hit instead of the 2nd."""

import os

from device import Device
from harness import PIPELINE, Mosquitto, Tidegate, eventually, subscriber
from oracle import confirm
from tap import Tap, judge_taken, settle

POINTS = ["after_recv", "after_wal_write", "after_sync", "before_ack", "after_ack", "epoch_seal"]
HITS = [1, 2, 10] if os.environ.get("TIDEGATE_LONG") == "1" else [2]
DEVICES = 3
ABORTED = -6


def die_at(tidegate, point, hit):
    """Starts it with a fault, and waits for the death that it brings."""
    tidegate.env["TIDEGATE_FAULT"] = f"kill:{point}:{hit}"
    tidegate.start()
    code = eventually(f"its end at {point}, hit {hit} (of a debug build)", tidegate.process.poll)
    said = f"fault Kill at {point}, hit {hit}"
    eventually(said, lambda: any(said in line for line in tidegate.lines))
    assert code == ABORTED, (code, tidegate.lines)
    del tidegate.env["TIDEGATE_FAULT"]


def kill(broker, tidegate, tap, point, hit, sent):
    """Devices of its own publish while it dies, and until it is back."""
    devices = [Device(broker.port, f"{point}-{hit}-{n}", pause_s=0.005) for n in range(DEVICES)]
    for device in devices:
        device.start()
    eventually("acknowledgements", lambda: all(d.acknowledged for d in devices))
    die_at(tidegate, point, hit)
    wait_for_connection = tap.connection()
    tidegate.start()
    wait_for_connection()
    for device in devices:
        sent[device.name_] = device.finish()
    settle(tap, broker, sent)
    judge_taken(tidegate, tap, sent)
    tidegate.stop()
    return confirm(tidegate, sent)


def main():
    sent = {}
    with Mosquitto() as broker:
        tap = Tap(broker.port)
        with Tidegate(PIPELINE.replace("SOURCE", subscriber(tap))) as tidegate:
            # The session is to be there before anybody publishes.
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            tidegate.stop()
            for point in POINTS:
                for hit in HITS:
                    rows = kill(broker, tidegate, tap, point, hit, sent)
    assert all(tap.sessions[1:]), tap.sessions
    print(f"killed at {len(POINTS) * len(HITS)} points on the way from a broker: {rows} readings, "
          f"0 lost, 0 doubled after each; {tap.repetitions()} came again")


main()
