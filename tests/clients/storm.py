"""Bad connections on the endpoint, and a good device among them that notices nothing: connections
cut at any byte, readers that do not read, thousands of connects, random bytes. Afterwards memory is
about what it was before, no connection is left over, and the good device's count is exact."""

import os
import random
import re
import socket
import struct
import threading
import time

from device import packet
from harness import ENDPOINT, PIPELINE, Publisher, Tidegate, eventually, payload, totals

CONNECTS = 3000
CUTS = 400
READERS = 20
GROWTH_BYTES_MAX = 256 << 20


def text(words):
    return struct.pack(">H", len(words)) + words.encode()


def connect(name, version=4):
    none = b"\0" if version == 5 else b""
    return packet(0x10, text("MQTT") + bytes([version, 2, 0, 60]) + none + text(name))


def publish(device, seq, version=4):
    none = b"\0" if version == 5 else b""
    topic = text(f"plant/north/{device}/telemetry")
    return packet(0x32, topic + struct.pack(">H", seq + 1) + none + payload(seq).encode())


def dial(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def connects(port, count):
    """Connects, waits for the answer, and is gone; every other one by a reset."""
    for i in range(count):
        with dial(port) as client:
            client.sendall(connect(f"storm-{i % 500}", 4 + i % 2))
            assert client.recv(4)[:1] == b"\x20"
            if i % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def cuts(port, moments):
    """A whole conversation, cut anywhere."""
    for i in range(CUTS):
        version = 4 + i % 2
        said = connect(f"cut-{i}", version) + publish("unheard", 0, version) * 3
        with dial(port) as client:
            client.sendall(said[:moments.randrange(len(said))])


def noise(port, moments):
    for _ in range(CUTS):
        with dial(port) as client:
            try:
                if moments.random() < 0.5:
                    client.sendall(connect("noise", moments.choice([4, 5])))
                client.sendall(moments.randbytes(moments.randrange(1, 3000)))
            except OSError:
                # It was closed on: as it should be.
                pass


def slow_readers(port):
    """Who subscribes to all and never reads, until it is told to close."""
    readers = []
    for i in range(READERS):
        reader = dial(port)
        reader.sendall(connect(f"slow-{i}"))
        assert reader.recv(4)[:1] == b"\x20"
        reader.sendall(packet(0x82, b"\0\1" + text("plant/#") + b"\1"))
        readers.append(reader)
    return readers


def resident(tidegate):
    """Bytes of memory that the process holds."""
    with open(f"/proc/{tidegate.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_sockets(tidegate):
    folder, count = f"/proc/{tidegate.process.pid}/fd", 0
    for name in os.listdir(folder):
        try:
            count += os.readlink(f"{folder}/{name}").startswith("socket:")
        except FileNotFoundError:
            pass
    return count


def main():
    moments = random.Random(int(os.environ.get("TIDEGATE_SEED", "3")))
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        port = tidegate.port()
        good = Publisher(port, "good")
        good.send(range(200))
        eventually("the first acknowledgements", lambda: good.acknowledged == 200)
        sockets, memory, began = open_sockets(tidegate), resident(tidegate), time.monotonic()
        readers = slow_readers(port)
        bad = [threading.Thread(target=connects, args=(port, CONNECTS // 2)) for _ in range(2)]
        bad.append(threading.Thread(target=cuts, args=(port, moments)))
        bad.append(threading.Thread(target=noise, args=(port, random.Random(moments.random()))))
        for one in bad:
            one.start()
        sent = 200
        while any(one.is_alive() for one in bad) or sent < 2000:
            good.send(range(sent, sent + 100))
            sent += 100
        for one in bad:
            one.join()
        took = time.monotonic() - began
        good.finish()
        for reader in readers:
            reader.close()
        # The good device has left, too.
        eventually("no connection left over", lambda: open_sockets(tidegate) < sockets)
        growth = resident(tidegate) - memory
        assert growth < GROWTH_BYTES_MAX, f"memory grew by {growth >> 20} MiB"

        def look():
            return tidegate.per_device().get("good") == totals(range(sent))
        eventually(f"{sent} readings of the good device", look)
        panics = [line for line in tidegate.lines if re.search("panicked|task failed", line)]
        assert not panics, panics
        tidegate.stop()
    print(f"{CONNECTS} connects, {CUTS} cut, {CUTS} of noise, {READERS} that do not read in "
          f"{took:.0f} s: {sent} good readings exact, memory +{growth >> 20} MiB")


main()
