"""mosquitto as external broker; Tidegate, mosquitto, or both are killed (-9) again and again while
devices publish at QoS 1. Every number is in the table, and where only Tidegate is killed, once:
so says `tidegate sql`, and so does DuckDB.

mosquitto acknowledges a message before it saves it, also with autosave_on_changes: what it had
acknowledged in the moment of its own kill may be missing, only that, and it is counted. And it
goes back to an older state: it sends messages again that were acknowledged before, and uses the
packet ids of others anew. Most of them are recognised, while Tidegate lives; all of them can be told
apart by a key of the reading only: without one what comes twice is counted, and with
`[reading.dedup]` there is none.

Usage: broker_chaos.py [LOOP ...]       (v4, v5, qos2, broker, both, both-dedup; all without it)

TIDEGATE_CHAOS_SECONDS makes each loop longer (8), TIDEGATE_SEED moves the moments, TIDEGATE_DEVICES
(3) and TIDEGATE_RATE (750) say how many devices send how many messages per second, all together.
TIDEGATE_BROKER_KILLS is how often the broker is killed at least, in loops that kill it (1)."""

import os
import random
import sys
import time

from harness import (PIPELINE, Device, Mosquitto, Tidegate, eventually, judge, subscriber)
from oracle import confirm

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = [f"d{n + 1}" for n in range(int(os.environ.get("TIDEGATE_DEVICES", "3")))]
RATE = float(os.environ.get("TIDEGATE_RATE", "750"))
BROKER_KILLS_MIN = int(os.environ.get("TIDEGATE_BROKER_KILLS", "1"))
DEDUP = '[reading.dedup]\nkey = ["device", "seq"]\nhorizon = "1h"\n'
# How many of the kills are the broker's, and how it is connected to.
LOOPS = {
    "v4": (0, 1, "3.1.1"), "v5": (0, 1, "5"), "qos2": (0, 2, "5"), "broker": (1, 1, "5"),
    "both": (0.4, 1, "5"), "both-dedup": (0.4, 1, "5", DEDUP),
}
# A run that is this long is killed at least so often.
LONG_S, KILLS_MIN = 300, 60
# What a device has under way, at most: so near to a kill of the broker is a number that it lost.
NEAR = 20


def source(broker, qos, version):
    return (subscriber(broker).replace("qos = 1", f"qos = {qos}")
            + f'\nversion = "{version}"')


def pause_s(moments):
    """Short in a short run; in a long one from half a second to ten, mostly short."""
    if SECONDS < LONG_S:
        return moments.uniform(0.2, 1.2)
    return 0.5 + 9.5 * moments.random() ** 3


def disturb(share, broker, tidegate, devices):
    """Kills and starts again. How often it killed Tidegate; for each kill of the broker how many
    messages of each device had been acknowledged."""
    moments, kills, broker_kills = random.Random(SEED), 0, []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or (share and len(broker_kills) < BROKER_KILLS_MIN):
        time.sleep(pause_s(moments))
        if moments.random() < share:
            broker.kill()
            broker_kills.append({name: d.acknowledged for name, d in devices.items()})
            broker.start()
        else:
            tidegate.kill()
            tidegate.start()
            kills += 1
    return kills, broker_kills


def loop(share, qos, version, dedup=""):
    pipeline = PIPELINE.replace("[reading.fields]", dedup + "[reading.fields]")
    # Where it is not killed, it need not save at every change, which it can do for few messages only.
    with Mosquitto(Mosquitto.SAVE_ALWAYS if share else "") as broker, \
            Tidegate(pipeline.replace("SOURCE", source(broker, qos, version))) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        devices = {name: Device(broker.port, name, pause_s=len(DEVICES) / RATE) for name in DEVICES}
        for device in devices.values():
            device.start()
        eventually("the first acknowledgements",
                   lambda: all(d.acknowledged for d in devices.values()))
        began = time.monotonic()
        kills, broker_kills = disturb(share, broker, tidegate, devices)
        rate = sum(d.acknowledged for d in devices.values()) / (time.monotonic() - began)
        sent = {name: device.finish() for name, device in devices.items()}

        def excused(device, seq):
            return any(abs(seq - acked[device]) <= NEAR for acked in broker_kills)

        # How often mosquitto sends them again, nobody knows.
        surplus_max = float("inf") if share and not dedup else 0
        doubled, again, missing = judge(tidegate, sent, excused, surplus_max)
        tidegate.stop()
        rows = confirm(tidegate, sent, doubled, missing)
    total = sum(len(s) for s in sent.values())
    print(f"MQTT {version} QoS {qos}{' with dedup' if dedup else ''}: {total} readings of "
          f"{len(DEVICES)} devices at {rate:.0f}/s, seed {SEED}, tidegate killed {kills} times, "
          f"mosquitto {len(broker_kills)} times: {len(missing)} lost by mosquitto itself, {doubled} "
          f"doubled, {again} sent again by their device; DuckDB finds the same {rows} rows",
          flush=True)
    if not share or dedup:
        assert doubled == 0, f"{doubled} doubled"
    # A device sends again only what its broker did not acknowledge, and only that may be missing
    # or doubled.
    assert share or (again == 0 and not missing), f"{again} sent again, missing {missing}"
    if SECONDS >= LONG_S and not share:
        assert kills >= KILLS_MIN, f"only {kills} kills"


def main():
    for name in sys.argv[1:] or LOOPS:
        loop(*LOOPS[name])


main()
