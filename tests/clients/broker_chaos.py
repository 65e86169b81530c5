"""mosquitto as external broker; Tidegate and mosquitto are killed (-9) again and again while devices
publish at QoS 1. Every number is in the table, and none more often than its device sent it.

mosquitto acknowledges a message before it saves it, also with autosave_on_changes: what it had
acknowledged in the moment of its own kill may be missing, only that, and it is counted. And it
goes back to an older state: it sends messages again that were acknowledged long ago, and uses their
packet ids for others. Those can be told apart by a key of the reading only: they are counted, and
with `[reading.dedup]` there are none.

TIDEGATE_CHAOS_SECONDS makes it longer, TIDEGATE_SEED moves the moments, TIDEGATE_DEVICES (3) and
TIDEGATE_RATE (750) say how many devices send how many messages per second, all together."""

import os
import random
import time

from harness import (PIPELINE, Device, Mosquitto, Tidegate, eventually, judge, subscriber)

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = [f"d{n + 1}" for n in range(int(os.environ.get("TIDEGATE_DEVICES", "3")))]
RATE = float(os.environ.get("TIDEGATE_RATE", "750"))
DEDUP = '[reading.dedup]\nkey = ["device", "seq"]\nhorizon = "1h"\n'


def source(broker, qos, version):
    return (subscriber(broker).replace("qos = 1", f"qos = {qos}")
            + f'\nversion = "{version}"')


def loop(kill_broker, qos, version, dedup=""):
    moments = random.Random(SEED)
    pipeline = PIPELINE.replace("[reading.fields]", dedup + "[reading.fields]")
    with Mosquitto(Mosquitto.SAVE_ALWAYS) as broker, \
            Tidegate(pipeline.replace("SOURCE", source(broker, qos, version))) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        devices = {name: Device(broker.port, name, pause_s=len(DEVICES) / RATE) for name in DEVICES}
        for device in devices.values():
            device.start()
        eventually("the first acknowledgements",
                   lambda: all(d.acknowledged for d in devices.values()))
        kills, broker_kills, end = 0, [], time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(moments.uniform(0.2, 1.2))
            if kill_broker and moments.random() < 0.4:
                broker.kill()
                broker_kills.append({name: d.acknowledged for name, d in devices.items()})
                broker.start()
            else:
                tidegate.kill()
                tidegate.start()
                kills += 1
        sent = {name: device.finish() for name, device in devices.items()}

        def excused(device, seq):
            return any(acked[device] - 5 <= seq <= acked[device] + 20 for acked in broker_kills)
        doubled, again, missing = judge(tidegate, sent, excused, len(broker_kills))
        tidegate.stop()
    total = sum(len(s) for s in sent.values())
    print(f"MQTT {version} QoS {qos}: {total} readings, tidegate killed {kills} times, mosquitto "
          f"{len(broker_kills)} times: {len(missing)} lost by mosquitto itself, {doubled} doubled, "
          f"{again} sent again by their device")
    if not kill_broker or dedup:
        assert doubled == 0, f"{doubled} doubled"
    # A device sends again only what its broker did not acknowledge.
    assert kill_broker or again == 0, f"{again} sent again"


def main():
    loop(False, 1, "3.1.1")
    loop(False, 1, "5")
    loop(False, 2, "5")
    loop(True, 1, "5")
    loop(True, 1, "5", DEDUP)


main()
