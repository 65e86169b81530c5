"""Webhooks across kills (-9) and a receiver that is down, answers 500, hangs, is slow or says 429:
each change of an alert is delivered, always under its one webhook-id, in order per alert, signed,
and nothing fires again. What was refused for good is listed, and sent again when asked for, beside
a running instance and by the next start.

TIDEGATE_KILLS says how often it is killed (7), TIDEGATE_SEED moves the moments."""

import json
import os
import random
import time

from device import Device
from harness import ALERT, ENDPOINT, PIPELINE, START_S, Tidegate, eventually, free_port
from receiver import SECRET, Receiver

KILLS = int(os.environ.get("TIDEGATE_KILLS", "7"))
SEED = int(os.environ.get("TIDEGATE_SEED", "4"))
MODES = ["down", 500, "hang", "slow", 429, 200, 503]
DEVICES = ["d1", "d2", "d3"]

def reading(seq):
    """One every ten seconds; every third minute is too warm."""
    hot = 40 if seq // 6 % 3 == 1 else 0
    return json.dumps({"seq": seq, "ts": START_S + 10 * seq, "temperature": 20.0 + hot})


def changes(tidegate):
    """Every change of an alert, as the table has it."""
    return {(row["alert_id"], row["status"])
            for row in tidegate.sql("SELECT alert_id, status FROM system.alerts")}


def check(receiver, told):
    """What the receiver saw of the changes that the table has."""
    seen, bodies, accepted = receiver.requests(), {}, []
    assert all(r["genuine"] for r in seen), "a signature is wrong"
    for request in seen:
        assert bodies.setdefault(request["id"], request["body"]) == request["body"]
        data = json.loads(request["body"])["data"]
        change = (data["alert_id"], data["status"])
        if change[1] == "resolved":
            fired = (change[0], "firing")
            assert fired in accepted, f"{change} was sent before {fired} was taken"
        if request["status"] == 200 and change not in accepted:
            accepted.append(change)
    assert set(accepted) == told, (len(accepted), len(told), told ^ set(accepted))
    assert len(bodies) == len(told), f"{len(bodies)} ids for {len(told)} changes"
    return len(seen)


def dead_letters(tidegate, receiver, port):
    """Refused for good, listed, sent again: by the running instance, and by the next."""
    receiver.become(404)
    late = Device(port, "late", pause_s=0.001)
    late.payload = reading
    late.start()
    data = ("--data", tidegate.data)

    def dead(at_least=1):
        def look():
            lines = [line.split() for line in tidegate.ask("outbox", *data).splitlines()]
            found = [line[2] for line in lines if line[:2] == ["given", "up"]]
            return len(found) >= at_least and found
        return eventually("dead letters", look)
    dead(4)
    late.finish()
    eventually("all refused", lambda: tidegate.ask(
        "outbox", *data).splitlines()[-1].startswith("0 wait"))
    refused = dead(4)
    receiver.become(200)

    def taken():
        return {r["id"] for r in receiver.accepted()}
    assert not taken() & set(refused)
    tidegate.ask("outbox", "resend", refused[0], *data)
    eventually("one to be taken", lambda: taken() & set(refused) == {refused[0]})
    tidegate.kill()
    tidegate.ask("outbox", "resend", "--all-dead", *data)
    tidegate.start()
    tidegate.port()
    eventually("all to be taken", lambda: set(refused) <= taken())
    assert "0 were given up" in tidegate.ask("outbox", *data)
    return len(refused)


def main():
    moments, port, receiver = random.Random(SEED), free_port(), Receiver()
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    env = {"OPS_URL": receiver.url, "OPS_SECRET": SECRET}
    more = ["--checkpoint-every", "300ms"]
    with Tidegate(PIPELINE.replace("SOURCE", source) + ALERT, env=env, more=more) as tidegate:
        tidegate.port()
        devices = {name: Device(port, name, pause_s=0.01) for name in DEVICES}
        for device in devices.values():
            device.payload = reading
            device.start()
        for kill in range(KILLS):
            receiver.become(MODES[kill % len(MODES)])
            before = sum(d.acknowledged for d in devices.values())
            eventually("more readings", lambda: sum(
                d.acknowledged for d in devices.values()) > before + 100)
            time.sleep(moments.uniform(0.3, 1.5))
            tidegate.kill()
            tidegate.start()
            tidegate.port()
        sent = {name: device.finish() for name, device in devices.items()}
        receiver.become(200)
        # A fresh start tries at once what had waited for long.
        tidegate.kill()
        tidegate.start()
        tidegate.port()
        # By the plain loop: minutes that had ended 5 s (the disorder) before the last reading.
        expected = 0
        for numbers in sent.values():
            windows = max(10 * max(numbers) - 5, 0) // 60
            hot = [window % 3 == 1 for window in range(windows)]
            expected += sum(1 for a, b in zip([False, *hot], hot) if a != b)
        eventually(f"{expected} changes", lambda: len(changes(tidegate)) == expected)
        eventually("their deliveries", lambda: len({
            r["id"] for r in receiver.accepted()}) >= expected)
        requests = check(receiver, changes(tidegate))
        # Nothing comes again: neither while it runs on, nor after one more start.
        tidegate.kill()
        tidegate.start()
        tidegate.port()
        quiet = Device(port, "quiet", pause_s=0.01)
        quiet.start()
        eventually("more readings", lambda: quiet.acknowledged > 50)
        quiet.finish()
        again = check(receiver, changes(tidegate)) - requests
        assert again <= 8, f"{again} requests for what was delivered"
        dead = dead_letters(tidegate, receiver, port)
        tidegate.stop()
    print(f"killed {KILLS} times: {expected} changes of alerts, all delivered in {requests} requests "
          f"under one id each; {dead} dead letters sent again")


main()
