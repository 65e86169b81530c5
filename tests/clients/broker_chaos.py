"""mosquitto as external broker; Tidegate, mosquitto, or both are killed (-9) again and again while
devices publish. A tap between the two reads what the broker delivered and what Tidegate confirmed:

- what Tidegate confirmed is in the table, without exception: so says `tidegate sql`, and so does
  DuckDB;
- no reading is there more often than the broker delivered it as a new message, nor, where only
  Tidegate is killed or with `[reading.dedup]`, than once;
- Tidegate never confirms what was not delivered on the same connection, never gives its session up,
  and finds it again on each connection.

mosquitto acknowledges a message before it saves it, also with autosave_on_changes: what it had
acknowledged in the moment of its own kill may be missing. Only that, and only if Tidegate never
confirmed it and mosquitto's own file never had it for Tidegate after a kill; it is counted.

And it goes back to an older state: what had been confirmed comes again, with ids that were used
anew in between. Tidegate recognises it by the order in which all of that came, but for what came
again before it was killed itself: where both are killed, that may be doubled, and is counted.

Usage: broker_chaos.py [LOOP ...]       (see LOOPS; all without it)

TIDEGATE_CHAOS_SECONDS makes each loop longer (4), TIDEGATE_SEED moves the moments, TIDEGATE_DEVICES
(3) and TIDEGATE_RATE (750) say how many devices send how many messages per second, all together.
TIDEGATE_BROKER_KILLS is how often the broker is killed at least, in loops that kill it (1)."""

import os
import random
import sys
import time

from device import IN_FLIGHT, Device
from harness import PIPELINE, Mosquitto, Tidegate, eventually, subscriber
from mosquitto_store import waiting
from oracle import confirm
from tap import Tap, judge_taken, settle

SECONDS = float(os.environ.get("TIDEGATE_CHAOS_SECONDS", "4"))
SEED = int(os.environ.get("TIDEGATE_SEED", "3"))
DEVICES = [f"d{n + 1}" for n in range(int(os.environ.get("TIDEGATE_DEVICES", "3")))]
RATE = float(os.environ.get("TIDEGATE_RATE", "750"))
BROKER_KILLS_MIN = int(os.environ.get("TIDEGATE_BROKER_KILLS", "1"))
DEDUP = '[reading.dedup]\nkey = ["device", "seq"]\nhorizon = "1h"\n'
# How many of the kills are the broker's, the QoS of devices and of Tidegate, the version of the
# latter.
LOOPS = {
    "v4": (0, 1, "3.1.1"), "v5": (0, 1, "5"), "qos2": (0, 2, "5"), "broker": (1, 1, "5"),
    "both": (0.4, 1, "5"), "both-dedup": (0.4, 1, "5", DEDUP), "qos2-broker": (1, 2, "5"),
    "qos2-both": (0.4, 2, "5"),
}
# A run that is this long is killed at least so often, and devices send nearly as fast as asked for.
LONG_S, KILLS_MIN, RATE_MIN = 300, 60, 0.98
# So many of the kills of the broker come twice, the second one at whatever it is doing then.
AT_ONCE_SHARE = 0.3
# What mosquitto loses of a device by a kill, at most.
LOST_MAX = 3


def source(tap, qos, version):
    return (subscriber(tap).replace("qos = 1", f"qos = {qos}")
            + f'\nversion = "{version}"')


def pause_s(moments):
    """Short in a short run; in a long one from half a second to ten, mostly short."""
    if SECONDS < LONG_S:
        return moments.uniform(0.2, 1.2)
    return 0.5 + 9.5 * moments.random() ** 3


class Disturbance:
    """Kills and starts again, `share` of the kills being the broker's."""

    def __init__(self, share, broker, tidegate, tap, devices):
        self.share, self.broker, self.tidegate, self.tap = share, broker, tidegate, tap
        self.devices, self.moments, self.kills = devices, random.Random(SEED), 0
        # How often the broker was killed while Tidegate was connected. Of each kill: how many
        # messages of each device it had acknowledged, and what it had on its disk for Tidegate.
        self.kills_of_broker, self.broker_kills = 0, []

    def run(self):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or (
                self.share and self.kills_of_broker < BROKER_KILLS_MIN):
            time.sleep(pause_s(self.moments))
            # A kill counts if there was something to kill: they were connected.
            wait_for_connection = self.tap.connection()
            if self.moments.random() < self.share:
                self.kill_broker()
                self.kills_of_broker += 1
                if self.moments.random() < AT_ONCE_SHARE:
                    time.sleep(self.moments.uniform(0, 0.5))
                    self.kill_broker()
            else:
                self.tidegate.kill()
                self.tap.life += 1
                self.tidegate.start()
                self.kills += 1
            wait_for_connection()

    def kill_broker(self):
        self.broker.kill()
        acknowledged = {name: d.acknowledged for name, d in self.devices.items()}
        kept = waiting(self.broker.folder / "mosquitto.db", "tidegate-test")
        self.broker_kills.append((acknowledged, kept))
        self.broker.start()

    def lost(self, device, seq):
        """Whether the broker has lost it by one of its kills, and its own disk shows that."""
        near = any(device in acknowledged and abs(seq - acknowledged[device]) <= IN_FLIGHT
                   for acknowledged, _ in self.broker_kills)
        return near and not any((device, seq) in kept for _, kept in self.broker_kills)


def loop(share, qos, version, dedup=""):
    pipeline = PIPELINE.replace("[reading.fields]", dedup + "[reading.fields]")
    # Where it is not killed, it need not save at every change: it can do that for few messages only.
    with Mosquitto(Mosquitto.SAVE_ALWAYS if share else "") as broker:
        tap = Tap(broker.port)
        with Tidegate(pipeline.replace("SOURCE", source(tap, qos, version))) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            devices = {name: Device(broker.port, name, len(DEVICES) / RATE, qos=qos)
                       for name in DEVICES}
            for device in devices.values():
                device.start()
            eventually("the first acknowledgements",
                       lambda: all(d.acknowledged for d in devices.values()))
            before, began = sum(d.acknowledged for d in devices.values()), time.monotonic()
            disturbance = Disturbance(share, broker, tidegate, tap, devices)
            disturbance.run()
            rate = (sum(d.acknowledged for d in devices.values()) - before) / (
                time.monotonic() - began)
            sent = {name: device.finish() for name, device in devices.items()}
            settle(tap, broker, sent, qos)
            doubled, missing = judge_taken(tidegate, tap, sent, bound(share, dedup, tap),
                                           disturbance.lost)
            tidegate.stop()
            rows = confirm(tidegate, sent, doubled, missing)
    tell(disturbance, tap, devices, sent, doubled, missing, rows, rate,
         f"MQTT {version} QoS {qos}{' with dedup' if dedup else ''}")
    check(disturbance, tap, devices, sent, missing, rate, qos)


def bound(share, dedup, tap):
    """How often a reading may be in the table, where the broker is killed."""
    if not share:
        return None
    if dedup:
        return lambda *reading: 1
    # That an id was used anew shows that what had come before it is acknowledged, but for what has
    # come again since. That is not in the journal, so a new process does not know it.
    if share < 1:
        return lambda *reading: tap.new[reading] + tap.unclear[reading]
    return lambda *reading: tap.new[reading]


def tell(disturbance, tap, devices, sent, doubled, missing, rows, rate, what):
    again = sum(1 for numbers in sent.values() for n in numbers.values() if n > 1)
    print(f"{what}: {sum(map(len, sent.values()))} readings of {len(DEVICES)} devices at "
          f"{rate:.0f}/s, seed {SEED}, tidegate killed {disturbance.kills} times, mosquitto "
          f"{disturbance.kills_of_broker} times: all of {len(tap.confirmed)} confirmed ones are "
          f"there, {len(missing)} lost by mosquitto itself, {doubled} doubled, "
          f"{again} sent again by their device as new ones and "
          f"{sum(d.again for d in devices.values())} times in its session, "
          f"{tap.repetitions()} repetitions recognised; packets {dict(tap.packets)}; DuckDB finds "
          f"the same {rows} rows", flush=True)


def check(disturbance, tap, devices, sent, missing, rate, qos):
    share, kills = disturbance.share, len(disturbance.broker_kills)
    # Saved at every change, or never killed: a session is lost by nobody.
    assert tap.sessions[0] is False and all(tap.sessions[1:]), tap.sessions
    if not share:
        assert all(n == 1 for numbers in sent.values() for n in numbers.values()), "sent again"
    if qos == 2:
        assert not tap.packets["PUBACK"], tap.packets
        # All the way, if nobody forgets it in between.
        assert tap.completed and (share or tap.confirmed.keys() <= tap.completed.keys())
    assert len(missing) <= LOST_MAX * kills * len(DEVICES), f"{len(missing)} lost of {kills} kills"
    if SECONDS >= LONG_S and not share:
        assert disturbance.kills >= KILLS_MIN, f"only {disturbance.kills} kills"
        assert rate >= RATE_MIN * RATE, f"only {rate:.0f}/s"
        assert tap.repetitions() > 0, "nothing came again: the test shows nothing"


def main():
    for name in sys.argv[1:] or LOOPS:
        loop(*LOOPS[name])


main()
