"""A proxy between a broker (or our endpoint) and its client that passes every byte on and reads the
MQTT in it: which readings were delivered, how often and as what, and which the taker confirmed. So
tests know whose fault a missing or a doubled row is, instead of excusing it.

A reading is a pair of device (third level of the topic) and number (`seq` in the payload)."""

import collections
import re
import socket
import struct
import threading
import time

from device import Device, seen
from harness import eventually

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBSCRIBE = 1, 2, 3, 4, 5, 6, 7, 10
NAMES = ("0 CONNECT CONNACK PUBLISH PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE "
         "UNSUBACK PINGREQ PINGRESP DISCONNECT AUTH").split()
DUP, FAILED = 0x08, 0x80
SEQ = re.compile(rb'"seq": ?(\d+)')


def varint(data, at):
    """A number of MQTT and where it ends; None where it is not whole."""
    number = shift = 0
    while at < len(data):
        byte, at = data[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    return None


class Splitter:
    """Cuts a stream of bytes into packets."""

    def __init__(self):
        self.rest = b""

    def packets(self, data):
        data, at, packets = self.rest + data, 0, []
        while length := varint(data, at + 1):
            body, end = length[1], length[1] + length[0]
            if end > len(data):
                break
            packets.append((data[at], data[body:end]))
            at = end
        self.rest = data[at:]
        return packets


class Link:
    """One connection: near is who connected to us, far whom we connected to for it."""

    def __init__(self, near, far):
        self.near, self.far, self.silent = near, far, False
        self.splitters = {near: Splitter(), far: Splitter()}
        self.version, self.accepted, self.over = 4, False, False
        # By packet id: what was delivered on this connection and not confirmed, what was released.
        self.open, self.released = {}, {}
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Tap:
    """Listens on a port of its own for as long as the process lives, whoever dies behind it.

    `publisher` is the side whose messages are of interest: "far", the broker of a subscriber, or
    "near", a device.

    Of each reading: `delivered`, how often it was published; `new`, how often as a new message,
    which is not a repetition that can be recognised; `unclear`, how often as a repetition of what an
    earlier `life` of the taker (the test counts them) got last, after the publisher had used packet
    ids anew; `confirmed`, how often the taker said by PUBACK or PUBREC that it has it; `completed`,
    how often PUBCOMP followed; `history`, in words. `packets` counts kinds of packets, `sessions`
    has for each connection whether the session was present, `problems` is what the taker may never
    do."""

    def __init__(self, to, publisher="far"):
        self.to, self.publisher, self.links, self.connects = to, publisher, [], []
        self.lock = threading.Lock()
        self.delivered, self.new = collections.Counter(), collections.Counter()
        self.confirmed, self.completed = collections.Counter(), collections.Counter()
        self.unclear, self.packets = collections.Counter(), collections.Counter()
        self.history, self.sessions, self.problems = {}, [], []
        self.life, self.got_in = 0, {}
        self._begin_session()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _begin_session(self):
        # By packet id: its last reading; at QoS 2, what is not released.
        self.last, self.unreleased = {}, {}
        # Whether an id was used for another message.
        self.anew = False

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            self.connects.append(time.monotonic())
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            link = Link(near, far)
            self.links.append(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link):
        pumps = [threading.Thread(target=self._pump, args=(link, a, b), daemon=True)
                 for a, b in [(link.near, link.far), (link.far, link.near)]]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        link.near.close()
        link.far.close()

    def _pump(self, link, a, b):
        """Passes on what comes from `a`. Who is written to may be gone while what it has confirmed
        is still on its way from it: then it is read to its end."""
        publishes, broken = a is getattr(link, self.publisher), False
        try:
            while data := a.recv(65536):
                if link.silent or (broken and publishes):
                    continue
                # Noted before: what comes back must find it.
                for byte1, body in link.splitters[a].packets(data):
                    self._note(link, publishes, byte1, body)
                try:
                    b.sendall(data)
                except OSError:
                    broken = True
        except OSError:
            pass
        if not link.silent:
            link.over = True
            try:
                b.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def _note(self, link, publishes, byte1, body):
        kind = byte1 >> 4
        with self.lock:
            self.packets[NAMES[kind]] += 1
            if kind == CONNECT:
                link.version, clean = body[6], body[7] & 2
                self._never(clean, "a CONNECT that gives the session up")
            elif kind == CONNACK:
                self._connack(link, body)
            elif kind == UNSUBSCRIBE:
                self._never(True, "an UNSUBSCRIBE")
            elif publishes and kind == PUBLISH:
                self._publish(link, byte1, body)
            elif publishes and kind == PUBREL:
                packet_id = int.from_bytes(body[:2], "big")
                self.unreleased.pop(packet_id, None)
                link.released[packet_id] = self.last.get(packet_id)
            elif not publishes and kind in (PUBACK, PUBREC, PUBCOMP):
                self._answer(link, kind, body)

    def _never(self, happened, what):
        if happened:
            self.problems.append(f"connection {len(self.sessions)}: {what}")

    def _connack(self, link, body):
        present, refused = body[0] & 1, body[1]
        if refused:
            return
        link.accepted = True
        self.sessions.append(bool(present))
        if not present:
            self._begin_session()

    def _publish(self, link, byte1, body):
        topic_end = 2 + int.from_bytes(body[:2], "big")
        qos, dup, at = byte1 >> 1 & 3, byte1 & DUP, topic_end
        packet_id = int.from_bytes(body[at:at + 2], "big") if qos else 0
        at += 2 if qos else 0
        if link.version == 5:
            length, at = varint(body, at)
            at += length
        number = SEQ.search(body, at)
        if number is None:
            return
        reading = body[2:topic_end].split(b"/")[2].decode(), int(number[1])
        # A repetition: DUP and the reading that this packet id had last in the session; at QoS 2
        # also without DUP, until it is released.
        known = qos and dup and self.last.get(packet_id) == reading or (
            qos == 2 and self.unreleased.get(packet_id) == reading)
        self.delivered[reading] += 1
        if known:
            self.unclear[reading] += self.anew and self.got_in[reading] < self.life
        else:
            self.new[reading] += 1
            self.anew = self.anew or packet_id in self.last
        self.got_in[reading] = self.life
        if qos:
            self.last[packet_id] = link.open[packet_id] = reading
        if qos == 2:
            self.unreleased[packet_id] = reading
        said = f"{len(self.sessions)}:{packet_id}{' DUP' if dup else ''}{'' if known else ' new'}"
        before = self.history.get(reading)
        self.history[reading] = f"{before}, {said}" if before else said

    def _answer(self, link, kind, body):
        packet_id = int.from_bytes(body[:2], "big")
        self._never(len(body) > 2 and body[2] >= FAILED, f"{NAMES[kind]} with code {body[2:3]}")
        if kind == PUBCOMP:
            self._never(packet_id not in link.released, f"PUBCOMP of {packet_id}, not released")
            self.completed[link.released.pop(packet_id, None)] += 1
            return
        reading = link.open.pop(packet_id, None)
        what = f"{NAMES[kind]} of {packet_id}, which was not delivered on this connection"
        self._never(reading is None, what)
        if reading is not None:
            self.confirmed[reading] += 1

    def connection(self):
        """Waits for the next connection that is accepted; call it, then do what brings it about,
        then call what it gave."""
        before = len(self.sessions)
        return lambda: eventually("the next connection", lambda: len(self.sessions) > before)

    def cut(self, half=False):
        """Ends the newest connection: with a reset for both, or (`half`) for the far side alone, so
        that the near one hears nothing any more and no end either. Whether there was one."""
        link, was_there = self.links[-1], self.connected()
        link.silent, link.over = half, True
        for end in [link.far] if half else [link.near, link.far]:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return was_there

    def connected(self):
        """Whether the newest connection is accepted, and as far as we know lives."""
        return bool(self.links) and self.links[-1].accepted and not self.links[-1].over

    def quiet(self):
        """Whether all that was delivered on the newest connection is confirmed."""
        with self.lock:
            return bool(self.links) and not self.links[-1].open and not self.links[-1].released

    def repetitions(self):
        """How many messages came again in a way that can be recognised."""
        with self.lock:
            return sum(self.delivered.values()) - sum(self.new.values())


def settle(tap, broker, sent, qos=1):
    """Nobody is killed any more: one last message goes the whole way, behind all others, and
    everything that was delivered is confirmed."""
    last = Device(broker.port, f"last{len(sent)}", qos=qos)
    last.start()
    eventually("the last message", lambda: last.acknowledged)
    sent[last.name_] = last.finish()
    stage = tap.completed if qos == 2 else tap.confirmed
    eventually("its confirmation", lambda: stage[last.name_, max(sent[last.name_])])
    eventually("all confirmations", tap.quiet)


def judge_taken(tidegate, tap, sent, most=None, lost=lambda device, seq: False):
    """After `settle`: what Tidegate confirmed is in the table, each reading no more often than it
    was delivered as a new message and than its device sent it (or than `most` says instead). The
    rest was never confirmed, and `lost` has to know how the broker lost it. Gives how many rows are
    doubled, and what is missing."""
    wanted, last = {(name, seq) for name, numbers in sent.items() for seq in numbers}, {}

    def complete():
        last["seen"] = seen(tidegate)
        return tap.confirmed.keys() <= last["seen"].keys()
    try:
        eventually("all that was confirmed", complete)
    except AssertionError:
        missing = sorted(tap.confirmed.keys() - last["seen"].keys())
        raise AssertionError(f"{len(missing)} readings were confirmed and are not in the table: "
                             f"{_told(tap, missing)}") from None
    assert not tap.problems, tap.problems[:5]
    found = last["seen"]
    assert found.keys() <= wanted, f"never sent: {sorted(found.keys() - wanted)[:5]}"
    most = most or (lambda *reading: min(tap.new[reading], sent[reading[0]][reading[1]]))
    twice = [reading for reading, n in found.items() if n > most(*reading)]
    assert not twice, f"{len(twice)} readings are in the table more often than they may be: " + (
        _told(tap, twice, found))
    missing = wanted - found.keys()
    stray = sorted(reading for reading in missing if not lost(*reading))
    assert not stray, f"{len(stray)} readings were not lost by their broker, and are missing: " + (
        _told(tap, stray))
    return sum(found.values()) - len(found), missing


def _told(tap, readings, found=()):
    """The first of them, with all that is known of their ways."""
    return "; ".join(f"{name} {seq} ({found[name, seq] if found else 0} rows; connection:packet id "
                     f"{tap.history.get((name, seq), 'never delivered')})"
                     for name, seq in sorted(readings)[:5])
