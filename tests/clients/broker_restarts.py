"""mosquitto as external broker, restarted in the middle: the subscriber comes back to its session
and misses nothing that the broker had acknowledged. A reading is there once, unless the device sent
it again."""

from harness import PIPELINE, Mosquitto, Publisher, Tidegate, subscriber
from tap import Tap, judge_taken, settle

PART = 1_000


def main():
    with Mosquitto() as broker:
        tap = Tap(broker.port)
        with Tidegate(PIPELINE.replace("SOURCE", subscriber(tap))) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            publisher = Publisher(broker.port, "d1")
            publisher.send(range(PART))
            wait_for_connection = tap.connection()
            broker.stop()
            broker.start()
            wait_for_connection()
            publisher.send(range(PART, 2 * PART))
            publisher.finish()
            # A quiet broker, a new device.
            last = Publisher(broker.port, "d2")
            last.send(range(PART))
            last.finish()
            sent = {"d1": dict.fromkeys(range(2 * PART), 1), "d2": dict.fromkeys(range(PART), 1)}
            settle(tap, broker, sent)
            # How often paho sends what the broker had not acknowledged, it does not say.
            doubled, missing = judge_taken(tidegate, tap, sent, lambda *reading: (
                tap.new[reading] if reading[0] == "d1" else 1))
            assert not missing and tap.sessions == [False, True], (missing, tap.sessions)
            tidegate.stop()
    print(f"broker restarted: {2 * PART} acknowledged, 0 lost, {doubled} doubled, as often as the "
          f"broker delivered them as new ones; {tap.repetitions()} repetitions recognised")


main()
