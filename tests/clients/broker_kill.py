"""mosquitto as external broker, Tidegate killed (-9) in the middle, again and again, while paho
publishes: what the broker acknowledged to the device is in the table, once."""

import random
import threading

from harness import PIPELINE, Mosquitto, Publisher, Tidegate, eventually, subscriber
from tap import Tap, judge_taken, settle

READINGS, KILLS = 6_000, 3


def main():
    moments = random.Random(5)
    with Mosquitto() as broker:
        tap = Tap(broker.port)
        with Tidegate(PIPELINE.replace("SOURCE", subscriber(tap))) as tidegate:
            broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
            publisher = Publisher(broker.port, "d1")
            sender = threading.Thread(target=publisher.send, args=(range(READINGS),))
            sender.start()
            for kill in range(KILLS):
                moment = (kill + moments.uniform(0.5, 1.4)) * READINGS / (KILLS + 1)
                eventually("the next moment", lambda: publisher.acknowledged >= moment)
                wait_for_connection = tap.connection()
                tidegate.kill()
                tidegate.start()
                wait_for_connection()
            sender.join()
            publisher.finish()
            sent = {"d1": dict.fromkeys(range(READINGS), 1)}
            settle(tap, broker, sent)
            judge_taken(tidegate, tap, sent)
            assert tap.sessions == [False] + [True] * KILLS, tap.sessions
            tidegate.stop()
    print(f"killed {KILLS} times: {READINGS} acknowledged, 0 lost, 0 doubled; "
          f"{tap.repetitions()} came again from the broker")


main()
