"""mosquitto as external broker, Tidegate killed (-9) in the middle, again and again: what the
broker acknowledged to the device is in the table. Doubled rows are counted and reported."""

import random
import threading

from harness import (PIPELINE, Mosquitto, Publisher, Tidegate, count_exactly, eventually,
                     subscriber)

READINGS, KILLS = 6_000, 3


def main():
    moments = random.Random(5)
    with Mosquitto() as broker, Tidegate(PIPELINE.replace("SOURCE", subscriber(broker))) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        publisher = Publisher(broker.port, "d1")
        sender = threading.Thread(target=publisher.send, args=(range(READINGS),))
        sender.start()
        for kill in range(KILLS):
            moment = (kill + moments.uniform(0.5, 1.4)) * READINGS / (KILLS + 1)
            eventually("the next moment", lambda: publisher.acknowledged >= moment)
            tidegate.kill()
            tidegate.start()
        sender.join()
        publisher.finish()
        doubled = count_exactly(tidegate, {"d1": READINGS})
        tidegate.stop()
    print(f"killed {KILLS} times: {READINGS} acknowledged, 0 lost, {doubled} doubled")


main()
