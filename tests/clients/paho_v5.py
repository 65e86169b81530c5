"""paho (Python) on the endpoint in version 5: topic aliases, receive maximum, expiry of messages and
sessions, subscription identifiers, a session left in the middle, and 20,000 QoS 2 messages from end
to end."""

import os
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from harness import (ENDPOINT, PATIENCE_S, PIPELINE, Publisher, Tidegate, eventually,
                     lasting_session, payload, totals)
from tools import lines, topic

MANY = int(os.environ.get("TIDEGATE_READINGS", "20000"))


class Client:
    """A version 5 client that remembers what it got. With `manual` it acknowledges when told."""

    def __init__(self, port, name, manual=False, session=False, **wishes):
        self.messages, self.suback, self.acked = [], [], 0
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name,
                                  protocol=mqtt.MQTTv5, manual_ack=manual)
        self.client.on_message = lambda _c, _u, message: self.messages.append(message)
        self.client.on_subscribe = lambda *a: self.suback.append(a[3])
        self.client.on_connect = lambda _c, _u, flags, _r, p: setattr(self, "answer", (flags, p))
        self.client.max_inflight_messages_set(1000)
        self.client.max_queued_messages_set(0)
        how = lasting_session(**wishes) if session else {}
        if wishes and not session:
            how = {"properties": properties(PacketTypes.CONNECT, **wishes)}
        self.client.connect("127.0.0.1", port, **how)
        self.client.loop_start()
        eventually("CONNACK", self.client.is_connected)

    def subscribe(self, filter, qos=2, **given):
        before = len(self.suback)
        given = properties(PacketTypes.SUBSCRIBE, **given)
        self.client.subscribe(filter, options=SubscribeOptions(qos=qos), properties=given)
        eventually("SUBACK", lambda: len(self.suback) > before)
        return self

    def publish(self, device, seq, qos=1, to=None, **given):
        given = properties(PacketTypes.PUBLISH, **given) if given else None
        return self.client.publish(topic(device) if to is None else to, payload(seq), qos,
                                   properties=given)

    def texts(self):
        return [message.payload.decode() for message in list(self.messages)]

    def expect(self, texts):
        eventually(f"{len(texts)} messages", lambda: len(self.messages) >= len(texts))
        assert self.texts() == texts, f"{self.texts()[:3]} instead of {texts[:3]}"

    def acknowledge(self, count):
        for message in self.messages[self.acked:self.acked + count]:
            self.client.ack(message.mid, message.qos)
        self.acked += count

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        """The network is gone, without DISCONNECT."""
        self.client.loop_stop()
        self.client._sock.close()


def properties(kind, **given):
    all_of_them = Properties(kind)
    for name, text in given.items():
        setattr(all_of_them, name, text)
    return all_of_them


def aliases(port, expected):
    device = "v5-alias"
    reader = Client(port, "reader-alias").subscribe(topic(device))
    writer = Client(port, "writer-alias")
    announced = writer.answer[1].TopicAliasMaximum
    assert announced >= 1, announced
    for alias in range(1, announced + 1):
        writer.publish(device, alias - 1, TopicAlias=alias)
    for seq in range(announced, 5 * announced):
        # Without a topic: the alias says it.
        writer.publish(device, seq, qos=seq % 3, to="", TopicAlias=seq % announced + 1)
    count = 5 * announced
    eventually("the messages", lambda: len(reader.messages) >= count)
    assert sorted(reader.texts()) == sorted(lines(range(count)))
    assert all(message.topic == topic(device) for message in reader.messages)
    expected[device] = totals(range(count))
    for client in (reader, writer):
        client.close()


def receive_maximum(port, expected):
    device = "v5-receive-maximum"
    slow = Client(port, "slow", manual=True, ReceiveMaximum=10).subscribe(topic(device), qos=1)
    writer = Client(port, "writer-slow")
    for seq in range(100):
        info = writer.publish(device, seq)
    info.wait_for_publish(PATIENCE_S)
    for window in range(10):
        eventually("a window", lambda: len(slow.messages) >= 10 * (window + 1))
        # Nothing happening cannot be awaited; this can only miss a fault, not invent one.
        time.sleep(0.05)
        assert len(slow.messages) == 10 * (window + 1), "more than the receive maximum is open"
        slow.acknowledge(10)
    slow.expect(lines(range(100)))
    expected[device] = totals(range(100))
    for client in (slow, writer):
        client.close()


def left_in_the_middle(port, expected):
    """A session that is left and resumed again and again gets each message, in order, and those
    that it did not acknowledge again with DUP."""
    device, seen = "v5-left", []
    writer = Client(port, "writer-left")
    Client(port, "leaver", session=True).subscribe(topic(device), qos=1).close()
    for seq in range(300):
        info = writer.publish(device, seq)
    info.wait_for_publish(PATIENCE_S)
    while len(seen) < 300:
        reader = Client(port, "leaver", manual=True, session=True, ReceiveMaximum=50)
        assert reader.answer[0].session_present
        eventually("a window", lambda: len(reader.messages) >= min(50, 300 - len(seen)))
        numbers = reader.texts()
        again = [message.dup for message in reader.messages]
        assert again == [bool(seen)] * len(again), f"{len(seen)}: {again}"
        reader.acknowledge(30)
        seen += numbers[:30]
        # What came after them shows that the acknowledgements arrived.
        eventually("more", lambda: len(reader.messages) >= min(80, 330 - len(seen)))
        reader.close()
    wrong = [pair for pair in zip(seen, lines(range(300))) if pair[0] != pair[1]]
    assert not wrong and len(seen) == 300, f"got, expected: {wrong[:3]}"
    expected[device] = totals(range(300))
    writer.close()


def identifiers(port, expected):
    device = "v5-identifiers"
    reader = Client(port, "reader-id").subscribe(topic(device), SubscriptionIdentifier=3)
    reader.subscribe("plant/+/v5-identifiers/#", qos=0, SubscriptionIdentifier=268_435_455)
    writer = Client(port, "writer-id")
    user = [("a", "1"), ("b", "2"), ("a", "1")]
    writer.publish(device, 0, qos=2, UserProperty=user, ContentType="text/json", PayloadFormatIndicator=1,
                   ResponseTopic="answers", CorrelationData=b"\0\xff", MessageExpiryInterval=500)
    eventually("the message", lambda: reader.messages)
    got = reader.messages[0].properties
    assert sorted(got.SubscriptionIdentifier) == [3, 268_435_455], got
    assert got.UserProperty == user and got.ContentType == "text/json", got
    assert got.ResponseTopic == "answers" and got.CorrelationData == b"\0\xff", got
    assert 490 <= got.MessageExpiryInterval <= 500 and got.PayloadFormatIndicator == 1, got
    assert len(reader.messages) == 1 and reader.messages[0].qos == 2
    expected[device] = totals([0])
    for client in (reader, writer):
        client.close()


def expiry(port, expected):
    device = "v5-expiry"
    Client(port, "away", session=True).subscribe(topic(device)).close()
    short = Client(port, "short", session=True, SessionExpiryInterval=1).subscribe(topic(device))
    short.vanish()
    writer = Client(port, "writer-expiry")
    writer.publish(device, 0, MessageExpiryInterval=1)
    writer.publish(device, 1, MessageExpiryInterval=1000).wait_for_publish(PATIENCE_S)
    # Time itself is under test here.
    time.sleep(3)
    away = Client(port, "away", session=True)
    away.expect([payload(1)])
    assert away.messages[0].properties.MessageExpiryInterval <= 998
    late = Client(port, "short", session=True)
    assert not late.answer[0].session_present, "a session that had expired was there"
    expected[device] = totals([0, 1])
    for client in (away, late, writer):
        client.close()


def many(port, expected):
    device = "v5-many"
    reader = Client(port, "reader-many").subscribe(topic(device))
    publisher = Publisher(port, device, in_flight=500, version=5, qos=2)
    sender = threading.Thread(target=publisher.send, args=(range(MANY), 2000))
    sender.start()
    sender.join()
    publisher.finish()
    eventually("all messages", lambda: len(reader.messages) >= MANY)
    texts, wanted = reader.texts(), lines(range(MANY))
    assert sorted(texts) == sorted(wanted), f"{len(texts)} of {MANY}"
    assert all(message.qos == 2 for message in reader.messages)
    expected[device] = totals(range(MANY))
    reader.close()


def main():
    expected = {}
    source = ENDPOINT + "\nqueue_max = 50000"
    with Tidegate(PIPELINE.replace("SOURCE", source)) as tidegate:
        port = tidegate.port()
        for part in [aliases, receive_maximum, left_in_the_middle, identifiers, expiry, many]:
            part(port, expected)
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    rows = sum(n for n, _, _ in expected.values())
    print(f"paho, version 5: {len(expected)} devices, {rows} readings, none lost or doubled")


main()
