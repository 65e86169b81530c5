"""A device with a socket of its own, so that it knows how often it sent each reading; and the judge
of what came of it."""

import select
import socket
import threading
import time

from harness import PATIENCE_S, eventually, payload

# What a device has under way, at most.
IN_FLIGHT = 20
# It goes by a schedule: what it is behind with it makes up for, if that is no more than so much.
BEHIND_S_MAX = 5
# Who does not answer for so long is gone.
SILENT_S = 30
PUBACK, PUBREC, PUBREL, PUBCOMP = 0x40, 0x50, 0x62, 0x70
DUP = 0x08


class Device(threading.Thread):
    """Publishes its readings one after the other, one every `pause_s`.

    At QoS 1 in a new session for each connection: what was not acknowledged it sends again there as
    a new message, in order. At QoS 2 in one session: it sends again, with DUP and the old packet
    id, what the other side has not said that it has, and PUBREL for the rest; where that has lost
    the session, what is unfinished is a new message.

    `sent` is how often it sent each number as a new message, `again` how often it sent something
    again in its session."""

    def __init__(self, port, name, pause_s=0.002, in_flight=IN_FLIGHT, qos=1):
        super().__init__(daemon=True)
        self.port, self.name_, self.pause_s, self.in_flight = port, name, pause_s, in_flight
        self.topic, self.qos = f"plant/north/{name}/telemetry".encode(), qos
        self.sent, self.acknowledged, self.again = {}, 0, 0
        self.next_seq, self.enough, self.error = 0, threading.Event(), None
        self.payload = payload
        # Packet ids of what is under way, in the order in which it was sent, with numbers.
        self.waiting, self.released, self.packet_id = {}, set(), 0
        # Numbers that it has to send as new messages once more.
        self.once_more = []

    def run(self):
        self.due = time.monotonic()
        try:
            while not (self.enough.is_set() and not self.waiting and not self.once_more):
                try:
                    self._connection()
                except OSError:
                    time.sleep(0.02)
        except BaseException as error:  # told to the main thread by `finish`
            self.error = error
            raise

    def _connection(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=SILENT_S) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client, clean = self.name_.encode(), 0 if self.qos == 2 else 2
            body = b"\0\4MQTT\4" + bytes([clean, 0, 0]) + len(client).to_bytes(2, "big") + client
            link.sendall(bytes([0x10, len(body)]) + body)
            self.unread = b""
            while len(self.unread) < 4:
                self._receive(link)
            answer, self.unread = self.unread[:4], self.unread[4:]
            assert answer in (b"\x20\x02\0\0", b"\x20\x02\1\0"), f"CONNECT was refused: {answer}"
            self._resume(link, present=answer[2] == 1)
            while self.waiting or self.once_more or not self.enough.is_set():
                wait_s = self._send_what_is_due(link)
                if select.select([link], [], [], SILENT_S if wait_s is None else wait_s)[0]:
                    self._receive(link)
                    self._answers(link)
                elif wait_s is None:
                    raise ConnectionError("no answer")
            link.sendall(b"\xe0\0")

    def _receive(self, link):
        some = link.recv(4096)
        if not some:
            raise ConnectionError("closed")
        self.unread += some

    def _resume(self, link, present):
        if not present:
            # As many as were under way, in their order, before whatever else is to come again.
            self.once_more = sorted({*self.waiting.values(), *self.once_more})
            self.waiting, self.released = {}, set()
        for packet_id, seq in self.waiting.items():
            self.again += 1
            if packet_id in self.released:
                link.sendall(_short(PUBREL, packet_id))
            else:
                link.sendall(self._publish(packet_id, seq, DUP))

    def _send_what_is_due(self, link):
        """How long to wait for an answer before there is more to send; None: for ever."""
        while len(self.waiting) < self.in_flight:
            if self.once_more:
                seq = self.once_more.pop(0)
            elif self.enough.is_set():
                return None
            else:
                now = time.monotonic()
                if now < self.due:
                    return self.due - now
                self.due = max(self.due, now - BEHIND_S_MAX) + self.pause_s
                seq, self.next_seq = self.next_seq, self.next_seq + 1
            self.packet_id = self.packet_id % 60_000 + 1
            assert self.packet_id not in self.waiting, "a packet id comes round too soon"
            self.waiting[self.packet_id] = seq
            # Counted before, because a write that fails half-way may have arrived.
            self.sent[seq] = self.sent.get(seq, 0) + 1
            link.sendall(self._publish(self.packet_id, seq))
        return None

    def _answers(self, link):
        """Takes all whole answers that are there."""
        while len(self.unread) >= 4:
            packet, self.unread = self.unread[:4], self.unread[4:]
            packet_id = int.from_bytes(packet[2:], "big")
            known = packet_id in self.waiting
            assert packet[1] == 2, packet
            if packet[0] == PUBREC and self.qos == 2:
                if known:
                    self.released.add(packet_id)
                link.sendall(_short(PUBREL, packet_id))
                continue
            assert packet[0] == (PUBCOMP if self.qos == 2 else PUBACK), packet
            # A broker that goes on from an older state may have begun what is long done.
            assert known or self.qos == 2, packet
            if not known:
                continue
            del self.waiting[packet_id]
            self.released.discard(packet_id)
            self.acknowledged += 1

    def _publish(self, packet_id, seq, dup=0):
        text = self.payload(seq).encode()
        return publish_packet(self.topic, packet_id, text, self.qos, dup)

    def finish(self):
        """Publishes no more and waits for all acknowledgements; how often each number was sent."""
        self.enough.set()
        self.join(PATIENCE_S)
        assert self.error is None and not self.is_alive(), (self.error, len(self.waiting))
        return self.sent


def packet(first, body):
    """An MQTT packet: its first byte, its length, its body."""
    head, left = bytes([first]), len(body)
    while left >= 0x80:
        head, left = head + bytes([left & 0x7F | 0x80]), left >> 7
    return head + bytes([left]) + body


def publish_packet(topic, packet_id, text, qos=1, dup=0):
    """PUBLISH of version 3.1.1."""
    body = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big") + text
    return packet(0x30 | qos << 1 | dup, body)


def _short(kind, packet_id):
    return bytes([kind, 2]) + packet_id.to_bytes(2, "big")


def judge(tidegate, devices):
    """Each number is there, and no more often than it was sent. Gives how many rows are doubled,
    and how many numbers were sent more than once."""
    wanted, last = {(name, seq) for name, sent in devices.items() for seq in sent}, {}

    def complete():
        last["missing"] = sorted(wanted - seen(tidegate).keys())
        return not last["missing"]
    try:
        eventually("all readings", complete)
    except AssertionError:
        raise AssertionError(f"missing: {last['missing'][:20]}") from None
    # What came twice may be committed after the rest.
    time.sleep(2)
    found = seen(tidegate)
    assert found.keys() <= wanted, f"never sent: {sorted(found.keys() - wanted)[:5]}"
    surplus = {k: n for k, n in found.items() if n > devices[k[0]][k[1]]}
    assert not surplus, f"more often than they were sent: {sorted(surplus.items())[:5]}"
    again = sum(1 for sent in devices.values() for n in sent.values() if n > 1)
    return sum(found.values()) - len(found), again


def seen(tidegate):
    """How many rows there are of each reading, a pair of device and number."""
    rows = tidegate.sql("SELECT device, seq, count(*) AS n FROM cold_chain.readings "
                        "GROUP BY device, seq")
    return {(r["device"], r["seq"]): r["n"] for r in rows}
