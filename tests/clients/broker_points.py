"""mosquitto as external broker; Tidegate is killed at each named point of the way from a broker into
the journal (`runtime/src/fault.rs`), while devices publish at QoS 1. Every number is in the table
once.

It needs a debug build: others have no such points. TIDEGATE_LONG=1 takes each point at its 1st, 2nd
and 10th hit instead of the 2nd."""

import os

from harness import (PIPELINE, Device, Mosquitto, Tidegate, eventually, judge, subscriber)
from oracle import confirm

POINTS = ["after_recv", "after_wal_write", "after_sync", "before_ack", "after_ack", "epoch_seal"]
HITS = [1, 2, 10] if os.environ.get("TIDEGATE_LONG") == "1" else [2]
DEVICES = ["d1", "d2", "d3"]
ABORTED = -6


def die_at(tidegate, point, hit):
    """Starts it with a fault, and waits for the death that it brings."""
    tidegate.env["TIDEGATE_FAULT"] = f"kill:{point}:{hit}"
    tidegate.start()
    code = eventually(f"its end at {point}, hit {hit} (of a debug build)", tidegate.process.poll)
    said = f"fault Kill at {point}, hit {hit}"
    eventually(said, lambda: any(said in line for line in tidegate.lines))
    assert code == ABORTED, (code, tidegate.lines)


def main():
    with Mosquitto() as broker, Tidegate(PIPELINE.replace("SOURCE", subscriber(broker))) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        devices = {name: Device(broker.port, name, pause_s=0.005) for name in DEVICES}
        for device in devices.values():
            device.start()
        eventually("acknowledgements", lambda: all(d.acknowledged for d in devices.values()))
        tidegate.kill()
        kills = [(point, hit) for point in POINTS for hit in HITS]
        for point, hit in kills:
            die_at(tidegate, point, hit)
        del tidegate.env["TIDEGATE_FAULT"]
        tidegate.start()
        sent = {name: device.finish() for name, device in devices.items()}
        doubled, again, _ = judge(tidegate, sent)
        tidegate.stop()
        rows = confirm(tidegate, sent)
    assert doubled == 0 and again == 0, (doubled, again)
    print(f"killed at {len(kills)} points on the way from a broker: {rows} readings, 0 lost, "
          f"0 doubled")


main()
