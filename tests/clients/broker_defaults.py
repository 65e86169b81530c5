"""mosquitto as it comes, without persistence, killed (-9) while Tidegate is away and devices publish:
it forgets the session and all that it had acknowledged. That is lost, and Tidegate says so: a row of
`system.gaps` covers each message that is missing, the metric counts the sessions, the log and
`system.sessions` name them, and what came outside the gaps is there.

TIDEGATE_BROKER_KILLS is how often the broker is killed (3)."""

import datetime
import os
import re
import time
import urllib.request

from device import Device
from harness import PIPELINE, Mosquitto, Tidegate, eventually, payload, subscriber

KILLS = int(os.environ.get("TIDEGATE_BROKER_KILLS", "3"))
DEVICES = ["d1", "d2"]
PAUSE_S = 0.005
# Between the moment that a device takes for its own and the one at which the broker has the message.
SLACK_S = 0.5


def lost_sessions(tidegate):
    """By the metric; none while it starts."""
    address = eventually("the address of the metrics", lambda: [
        line.split(" on ")[1].split()[0] for line in list(tidegate.lines)
        if line.startswith("metrics on http://")])[0]
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    numbers = re.findall(r"^tidegate_source_sessions_lost_total\{.*\} (\d+)$", text, re.MULTILINE)
    return sum(map(int, numbers))


def watch(device, when):
    """Notes when each reading is sent first."""
    def noted(seq):
        when.setdefault((device.name_, seq), time.time())
        return payload(seq)
    device.payload = noted


def time_of(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def seen(tidegate):
    rows = tidegate.sql("SELECT DISTINCT device, seq FROM cold_chain.readings")
    return {(row["device"], row["seq"]) for row in rows}


def forget(broker, tidegate, devices):
    """The broker dies while Tidegate is away and messages wait there; both come back, and hear of
    something new."""
    tidegate.kill()
    before = sum(d.acknowledged for d in devices)
    eventually("messages that wait at the broker", lambda: sum(
        d.acknowledged for d in devices) > before + 100)
    broker.kill()
    broker.start()
    tidegate.start()
    eventually("the session to be made anew", lambda: lost_sessions(tidegate) == 1)
    # It is subscribed again when something new comes through.
    newest = max(seq for _, seq in seen(tidegate))
    eventually("readings after it", lambda: max(seq for _, seq in seen(tidegate)) > newest + 100)


def main():
    when = {}
    with Mosquitto(settings=Mosquitto.DEFAULTS) as broker, \
            Tidegate(PIPELINE.replace("SOURCE", subscriber(broker)),
                     more=["--metrics", "127.0.0.1:0"]) as tidegate:
        broker.wait_for_subscription("tidegate-test", "plant/+/+/telemetry")
        named = {name: Device(broker.port, name, pause_s=PAUSE_S) for name in DEVICES}
        devices = list(named.values())
        for device in devices:
            watch(device, when)
            device.start()
        eventually("the first readings", lambda: len(seen(tidegate)) > 100)
        said = []
        for _ in range(KILLS):
            forget(broker, tidegate, devices)
            said += tidegate.lines
        sent = {name: device.finish() for name, device in named.items()}
        everything = {(name, seq) for name, numbers in sent.items() for seq in numbers}
        # The last readings of each device are outside of every gap.
        eventually("the last readings", lambda: {
            (name, max(numbers)) for name, numbers in sent.items()} <= seen(tidegate))
        tidegate.stop()
        gaps = [(time_of(r["f"]), time_of(r["t"])) for r in tidegate.sql(
            "SELECT gap_from AS f, gap_to AS t FROM system.gaps ORDER BY gap_from")]
        missing = sorted(everything - seen(tidegate))
        anew = tidegate.sql("SELECT count(*) AS n FROM system.sessions WHERE event = 'connected' "
                            "AND detail = 'a new session'")[0]["n"]
    assert len(missing) > 100, "next to nothing was lost: the test shows nothing"
    assert len(gaps) >= KILLS, gaps
    assert all(begin <= end for begin, end in gaps), gaps
    untold = [m for m in missing if not any(
        begin - SLACK_S <= when[m] <= end + SLACK_S for begin, end in gaps)]
    assert not untold, f"missing, and in no gap: {untold[:5]} of {len(untold)}; gaps {gaps}"
    told = [line for line in said if "of ours any more" in line and " between " in line]
    assert len(told) >= KILLS, (told, said)
    assert anew == KILLS + 1, f"{anew} new sessions in system.sessions"
    print(f"a broker without persistence killed {KILLS} times: {len(missing)} of {len(everything)} "
          f"readings lost by it, all of them in {len(gaps)} gaps that are told; e.g. {told[0]}")


main()
