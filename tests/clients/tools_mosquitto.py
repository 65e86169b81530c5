"""mosquitto_pub, mosquitto_sub and mosquitto_rr on the endpoint, both versions: each QoS, retained
messages, wills, shared and persistent subscriptions, properties, the largest packet, many messages.
What subscribers get is checked line by line, and what was published by SQL."""

import subprocess
import tempfile

from harness import ENDPOINT, PATIENCE_S, PIPELINE, Tidegate, eventually, payload, totals
from tools import Child, lines, topic

VERSIONS = ["mqttv311", "mqttv5"]
FEW, MANY = 300, 10_000
PACKET_MAX = 256 * 1024


class Publisher:
    def __init__(self, port):
        self.port = port

    def __call__(self, version, qos, device, *arguments, stdin=None, to=None):
        command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.port), "-V", version,
                   "-q", str(qos), "-i", f"pub-{device}", "-t", to or topic(device), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True,
                              timeout=PATIENCE_S)
        return done

    def lines(self, version, qos, device, seqs, *arguments):
        text = "".join(line + "\n" for line in lines(seqs))
        done = self(version, qos, device, "-l", *arguments, stdin=text)
        assert done.returncode == 0, done
        return totals(seqs)


class Subscriber(Child):
    """A running mosquitto_sub. Its debug lines say when it is subscribed; messages are marked."""

    MARK = ">>"

    def __init__(self, port, version, name, *arguments, form="%p", wait=True):
        super().__init__(["stdbuf", "-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", str(port),
                          "-V", version, "-i", name, "-d", "-F", self.MARK + form, *arguments])
        if wait:
            eventually(f"{name} to subscribe",
                       lambda: any(line.startswith("Subscribed") for line in list(self.said)))


def every_qos(port, publish, version, expected):
    for qos in [0, 1, 2]:
        device = f"{version}-q{qos}"
        subscriber = Subscriber(port, version, f"sub-{device}", "-q", str(qos), "-t", topic(device),
                                form="%q %r %p")
        expected[device] = publish.lines(version, qos, device, range(FEW))
        subscriber.expect([f"{qos} 0 {line}" for line in lines(range(FEW))])
        subscriber.stop()


def many(port, publish, version, expected):
    for qos in [1, 2]:
        device = f"{version}-many{qos}"
        subscriber = Subscriber(port, version, f"sub-{device}", "-q", str(qos), "-t", topic(device))
        expected[device] = publish.lines(version, qos, device, range(MANY))
        subscriber.expect(lines(range(MANY)))
        subscriber.stop()


def retained(port, publish, version, expected):
    device = f"{version}-retained"
    for seq in range(3):
        done = publish(version, seq, device, "-r", "-m", payload(seq))
        assert done.returncode == 0, done
    expected[device] = totals(range(3))
    first = Subscriber(port, version, "first", "-q", "1", "-t", topic(device), form="%r %p")
    first.expect(["1 " + payload(2)])
    # Live messages do not say that they are retained; an empty one ends it.
    assert publish(version, 1, device, "-r", "-n").returncode == 0
    first.expect(["1 " + payload(2), "0 "])
    first.stop()
    late = Subscriber(port, version, "late", "-t", topic(device), "-W", "2")
    assert late.ended() == 27 and not late.messages(), (late.said, "was cleared")


def will(port, publish, version, expected):
    device = f"{version}-will"
    watcher = Subscriber(port, version, "watcher", "-q", "2", "-t", topic(device), form="%q %p")
    last_words = ["--will-topic", topic(device), "--will-qos", "1", "--will-payload"]
    victim = Subscriber(port, version, "victim", "-t", "nothing", *last_words, payload(1))
    polite = publish(version, 1, "polite", *last_words, payload(2), "-m", "x", to="nothing")
    assert polite.returncode == 0, polite
    victim.kill()
    watcher.expect(["1 " + payload(1)])
    watcher.stop()
    expected[device] = totals([1])


def shared(port, publish, version, expected):
    device = f"{version}-shared"
    group = [Subscriber(port, version, f"member-{i}", "-q", "1", "-t", f"$share/g/{topic(device)}")
             for i in range(3)]
    expected[device] = publish.lines(version, 1, device, range(FEW))
    eventually("each message once", lambda: sum(len(m.messages()) for m in group) >= FEW)
    got = sorted(line for member in group for line in member.messages())
    assert got == sorted(lines(range(FEW))), f"{len(got)} of {FEW}"
    assert all(member.messages() for member in group), [len(m.messages()) for m in group]
    for member in group:
        member.stop()


def persistent(port, publish, version, expected):
    """Away in the middle; one QoS at a time, as clients show QoS 2 later than QoS 1."""
    for qos in [1, 2]:
        device = f"{version}-away{qos}"
        session = ["-c", "-q", "2", "-t", topic(device)]
        session += ["-x", "3600"] if version == "mqttv5" else []
        here = Subscriber(port, version, f"traveller{qos}", *session)
        publish.lines(version, qos, device, range(10))
        here.expect(lines(range(10)))
        here.stop()
        publish.lines(version, qos, device, range(10, FEW))
        back = Subscriber(port, version, f"traveller{qos}", *session)
        publish.lines(version, qos, device, range(FEW, 2 * FEW))
        expected[device] = totals(range(2 * FEW))
        back.expect(lines(range(10, 2 * FEW)))
        back.kill()


def properties(port, publish, expected):
    device = "mqttv5-properties"
    subscriber = Subscriber(port, "mqttv5", "reader", "-q", "1", "-t", topic(device),
                            form="%P %C %R %D %E %F")
    given = {"content-type": "text/json", "response-topic": "answers/1", "correlation-data": "c7",
             "message-expiry-interval": "3600", "payload-format-indicator": "1"}
    arguments = [word for name, text in given.items() for word in ["-D", "publish", name, text]]
    arguments += ["-D", "publish", "user-property", "unit", "°C"]
    done = publish("mqttv5", 1, device, *arguments, "-m", payload(0))
    assert done.returncode == 0, done
    eventually("the message", subscriber.messages)
    words = subscriber.messages()[0].split(" ")
    expiry = words.pop(4)
    assert words == ["unit:°C", "text/json", "answers/1", "c7", "1"], words
    assert 3590 <= int(expiry) <= 3600, expiry
    subscriber.stop()
    expected[device] = totals([0])


def request_response(port, publish, expected):
    """mosquitto_rr asks; a subscriber and a publisher are who answers."""
    for version in VERSIONS:
        device = f"{version}-rr"
        asked = Subscriber(port, version, "answerer", "-q", "1", "-t", topic(device))
        command = ["mosquitto_rr", "-h", "127.0.0.1", "-p", str(port), "-V", version, "-q", "1",
                   "-i", "asker", "-t", topic(device), "-e", f"answers/{version}",
                   "-m", payload(5), "-W", "60"]
        asker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        asked.expect([payload(5)])
        answer = publish(version, 1, device, "-m", "understood", to=f"answers/{version}")
        assert answer.returncode == 0, answer
        said, _ = asker.communicate(timeout=PATIENCE_S)
        assert said == "understood\n", said
        asked.stop()
        expected[device] = totals([5])


def largest(port, publish, version, expected):
    """A packet of exactly the limit, and one byte more."""
    device = f"{version}-large"
    # Header of 4 bytes, topic, packet id, and in version 5 the length of no properties.
    around = 4 + 2 + len(topic(device)) + 2 + (version == "mqttv5")
    for more in [0, 1]:
        reading = payload(more).ljust(PACKET_MAX - around + more)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(reading)
            file.flush()
            done = publish(version, 1, device, "-f", file.name)
        assert (done.returncode == 0) == (more == 0), (more, done)
    expected[device] = totals([0])


def main():
    expected = {}
    source = ENDPOINT + '\nqueue_max = 20000'
    with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
        port = tidegate.port()
        publish = Publisher(port)
        for version in VERSIONS:
            for part in [every_qos, retained, will, shared, persistent, largest, many]:
                part(port, publish, version, expected)
        properties(port, publish, expected)
        request_response(port, publish, expected)
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    rows = sum(n for n, _, _ in expected.values())
    print(f"mosquitto's tools: {len(expected)} devices, {rows} readings, none lost or doubled")


main()
