"""mosquitto as external broker, restarted in the middle: the subscriber comes back and misses
nothing that the broker had acknowledged."""

from harness import PIPELINE, Mosquitto, Publisher, Tidegate, count_exactly, subscriber, totals

PART = 1_000


def main():
    with Mosquitto() as broker, Tidegate(PIPELINE.replace("SOURCE", subscriber(broker))) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        publisher = Publisher(broker.port, "d1")
        publisher.send(range(PART))
        broker.stop()
        broker.start()
        publisher.send(range(PART, 2 * PART))
        publisher.finish()
        doubled = count_exactly(tidegate, {"d1": 2 * PART})
        # A quiet broker, a new device: exact again, whatever came twice before.
        last = Publisher(broker.port, "d2")
        last.send(range(PART))
        last.finish()
        count_exactly(tidegate, {"d1": 2 * PART, "d2": PART})
        assert tidegate.per_device()["d2"] == totals(range(PART))
        tidegate.stop()
    print(f"broker restarted: {2 * PART} acknowledged, 0 lost, {doubled} doubled")


main()
