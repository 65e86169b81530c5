"""mosquitto as external broker with retained entries of a registry: readings find what was retained
before them, what comes while Tidegate is dead comes after it, what comes again changes nothing."""

import subprocess

from harness import PIPELINE, Mosquitto, Publisher, Tidegate, eventually, subscriber

PART = 100
REGISTRY = """
[[registry]]
name    = "limits"
topic   = "limits/{device}"
key     = ["device"]
columns = { device = "string", high = "int64" }

[[step]]
name     = "limited"
type     = "enrich"
registry = "limits"
missing  = "reject"

[[table]]
from      = "limited"
freshness = "1s"
"""


def retain(broker, device, high):
    """Publishes an entry; without a limit, removes it."""
    entry = ["-n"] if high is None else ["-m", '{"high": %d}' % high]
    command = ["mosquitto_pub", "-p", broker.port, "-q", 1, "-r", "-t", f"limits/{device}", *entry]
    subprocess.run([str(word) for word in command], check=True, timeout=60)


def current(tidegate):
    rows = tidegate.sql("SELECT device, high FROM cold_chain.limits ORDER BY device")
    return {r["device"]: r["high"] for r in rows}


def versions(tidegate):
    query = "SELECT count(*) AS n FROM cold_chain.limits_versions_revisions"
    return tidegate.sql(query)[0]["n"]


def publish(broker, device, seqs):
    publisher = Publisher(broker.port, device)
    publisher.send(seqs)
    publisher.finish()


def found(tidegate, expected):
    """Waits until all readings of the devices found these limits."""
    query = "SELECT device, high, count(*) AS n FROM cold_chain.limited GROUP BY device, high"

    def look():
        return {(r["device"], r["high"]): r["n"] for r in tidegate.sql(query)} == expected
    eventually(f"{expected}", look)


def main():
    # What the source does with other retained messages does not matter.
    source = lambda name: subscriber(broker).replace("tidegate-test", name) + '\nretained = "drop"'
    pipeline = lambda name: PIPELINE.replace("SOURCE", source(name)) + REGISTRY
    with Mosquitto() as broker:
        retain(broker, "d1", 60)
        retain(broker, "d2", 70)
        with Tidegate(pipeline("first")) as tidegate:
            broker.wait_for_subscription("first", "plant/+/+/telemetry")
            publish(broker, "d1", range(PART))
            publish(broker, "d2", range(PART))
            found(tidegate, {("d1", 60): PART, ("d2", 70): PART})
            tidegate.kill()
            retain(broker, "d1", 61)
            retain(broker, "d2", None)
            publish(broker, "d1", range(PART, 2 * PART))
            tidegate.start()
            eventually("what was said meanwhile", lambda: current(tidegate) == {"d1": 61})
            # Readings of the past find what held then.
            found(tidegate, {("d1", 60): 2 * PART, ("d2", 70): PART})
            before = versions(tidegate)
            tidegate.stop()
            # A new session: all that is retained comes again.
            tidegate.pipeline.write_text(pipeline("second"))
            tidegate.start()
            broker.wait_for_subscription("second", "plant/+/+/telemetry")
            retain(broker, "d3", 80)
            eventually("a new entry", lambda: current(tidegate) == {"d1": 61, "d3": 80})
            assert versions(tidegate) == before + 1, (versions(tidegate), before)
            rejects = tidegate.sql("SELECT count(*) AS n FROM system.rejects")[0]["n"]
            assert rejects == 0, tidegate.sql("SELECT topic, detail FROM system.rejects LIMIT 5")
            tidegate.stop()
    print(f"retained entries of a registry: {3 * PART} readings found them, none came too early")


main()
