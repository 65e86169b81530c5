"""What mosquitto 2.0 has on its disk for a client: read from its own file (format 6), as it lies
there when the broker was killed."""

import struct

from tap import SEQ

MAGIC, VERSION = b"\0\xb5\0mosquitto db", 6
# Kinds of chunks.
MESSAGE, OF_CLIENT = 2, 3
OUT = 1


def waiting(file, client):
    """Readings (pairs of device and number) that wait for this client, or are under way to it."""
    data = file.read_bytes() if file.exists() else b""
    if not data:
        return set()
    assert data.startswith(MAGIC) and struct.unpack_from(">I", data, 19) == (VERSION,), data[:32]
    readings, ids, at = {}, set(), 23
    while at < len(data):
        kind, length = struct.unpack_from(">II", data, at)
        chunk, at = data[at + 8:at + 8 + length], at + 8 + length
        if kind == MESSAGE:
            readings[chunk[:8]] = _reading(chunk)
        elif kind == OF_CLIENT:
            # Store id, packet id, length of the client id, QoS, state, DUP, direction, client id.
            id_len, direction = struct.unpack_from(">H3xB", chunk, 10)
            if direction == OUT and chunk[16:16 + id_len] == client.encode():
                ids.add(chunk[:8])
    return {readings[message] for message in ids if readings.get(message)}


def _reading(chunk):
    """Store id, expiry, lengths of payload (4 bytes), then packet id, lengths of source, user and
    topic, port (2 bytes each), QoS, RETAIN; then source, user, topic and payload."""
    source_len, user_len, topic_len = struct.unpack_from(">HHH", chunk, 22)
    topic, payload = chunk[32 + source_len + user_len:][:topic_len], 32 + source_len + user_len
    number = SEQ.search(chunk, payload + topic_len)
    return number and (topic.split(b"/")[2].decode(), int(number[1]))
