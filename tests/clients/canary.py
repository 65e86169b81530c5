"""Secrets in the environment, in files, in URLs and in headers, also those of a registry and of a
cluster, reach whom they are for, and are nowhere else, neither as they are nor in base64: not in logs
(everything logged), in what `run` prints, `/metrics` and `/health`, in either output of `explain`,
`check`, `docs`, `outbox` and `doctor`, what a panic prints, the data folder, the tables. Files that are
compressed (checkpoints, Parquet) are searched as they are and unpacked.

Each place is searched for something that is no secret and is there, too: where that is not found,
nobody has looked. In files and tables it is the name of a device.

It needs a debug build, which panics where it is told to."""

import base64
import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq

from device import Device
from harness import BINARY, ENDPOINT, PIPELINE, Mosquitto, Tidegate, eventually, free_port
from receiver import SECRET, Receiver

# Found by these words alone, however they are cut or quoted.
CANARIES = {name: f"canary-{name}-{os.urandom(6).hex()}"
            for name in ("path", "query", "broker", "token", "user", "header", "registry",
                         "cluster", "stranger")}
# A device whose name is no secret.
KNOWN = f"canary-known-{os.urandom(6).hex()}"
# Start of a part of a checkpoint.
STATE = b"TGSTATE3"

ALERTS = """
[[alert]]
name    = "always"
from    = "per_minute"
fire    = "n > 0"
max_age = "36500d"
notify  = ["by_env", "by_file", "nowhere"]

[notify.by_env]
type          = "webhook"
url           = "${env:OPS_URL}"
secret        = "${env:OPS_SECRET}"
allow_private = true

[notify.by_file]
type          = "webhook"
url           = "${env:OPS_URL}"
secret        = "${file:FILE}"
allow_private = true

[notify.nowhere]
type          = "webhook"
url           = "${env:NOWHERE_URL}"
timeout       = "1s"
allow_private = true
"""

REGISTRY = """
[[registry]]
name    = "limits"
url     = "${env:REGISTRY_URL}"
refresh = "1s"
headers = { Authorization = "Bearer ${env:REGISTRY_TOKEN}" }
key     = ["device"]
columns = { device = "string", high = "int64" }

[[step]]
name     = "limited"
type     = "enrich"
registry = "limits"
missing  = "null"

[[table]]
from      = "limited"
freshness = "1s"
"""

HTTP = """name = "by-http"
[source]
type   = "http"
listen = "127.0.0.1:0"
tokens = { gateway = "${env:TOKEN}" }
users  = { gateway = "${env:USER_PASSWORD}" }
[reading]
device = "device"
time   = { field = "ts", format = "s" }
[reading.fields]
temperature = "float64"
[[table]]
from      = "readings"
freshness = "1s"
"""

MQTT = """name = "by-broker"
[source]
type     = "mqtt"
url      = "mqtt://127.0.0.1:PORT"
topics   = ["x/{device}"]
client_id = "secrets"
user     = "tidegate"
password = "${env:BROKER_PASSWORD}"
[reading]
device = "{device}"
time   = { field = "ts", format = "s" }
[reading.fields]
temperature = "float64"
[[table]]
from      = "readings"
freshness = "1s"
"""


def everything_below(folder):
    """Each file with its bytes, and a compressed one also with what is in its columns. The first is
    of what kind it is."""
    for path, _, names in os.walk(folder):
        for name in names:
            place = os.path.join(path, name)
            with open(place, "rb") as file:
                content = file.read()
            yield "journal" if path.endswith("journal") else "file", place, content
            if content.startswith(b"TGSTATE"):
                yield "checkpoint", place, of_checkpoint(content)
            elif name.endswith(".parquet"):
                yield "Parquet", place, of_parquet(content)


def of_checkpoint(content):
    """What is in a part: the operator's name, then a stream of Arrow, then which groups it is of."""
    assert content.startswith(STATE), f"a format that is not known here: {content[:8]}"
    begin = 10 + int.from_bytes(content[8:10], "little")
    return bytes_of(pa.ipc.open_stream(pa.py_buffer(content[begin:])).read_all())


def of_parquet(content):
    return bytes_of(pq.ParquetFile(pa.py_buffer(content)).read())


def bytes_of(table):
    """The bytes of all columns, those of texts one after the other."""
    chunks = [chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
              for column in table.columns for chunk in column.chunks]
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers() if buffer]
    return b"\0".join(buffer.to_pybytes() for buffer in buffers)


def forms(word):
    """The word as it is, and as it stands within base64 of something longer, as Basic
    authentication sends it: what of it does not depend on what is around it."""
    yield word
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + word)
        inner = encoded[-(-before * 8 // 6):(before + len(word)) * 8 // 6]
        yield from {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}


def nowhere(places, known):
    """No secret is in any of the places. Gives those where `known` is, and that is not none."""
    found, places = [], list(places)
    for place, content in places:
        if isinstance(content, str):
            content = content.encode()
        for name, canary in CANARIES.items():
            for form in forms(canary.encode()):
                assert form not in content, f"the canary of {name} is in {place} as {form}"
        # The key of the signature, too, and what it is made from.
        for word in (SECRET.encode(), SECRET.removeprefix("whsec_").encode()):
            assert word not in content, f"the webhook's secret is in {place}"
        if any(form in content for form in forms(known.encode())):
            found.append(place)
    assert found, f"{known!r} is in none of {[place for place, _ in places]} either: nobody looked"
    return found


def nowhere_below(folder, kinds):
    """No secret is in any file of a data folder; files of each of these kinds have `KNOWN`. How
    many files have it."""
    found = nowhere((((kind, place), content) for kind, place, content in everything_below(folder)),
                    KNOWN)
    assert {kind for kind, _ in found} >= kinds, f"{KNOWN} is only in {sorted(found)}"
    return len(found)


class Registry(BaseHTTPRequestHandler):
    """Gives entries to whoever knows the secrets of the header and of the URL, then now and then
    an error."""

    asked, refused = 0, 0

    def do_GET(self):
        knows = (self.headers["authorization"] == f"Bearer {CANARIES['header']}"
                 and CANARIES["registry"] in self.path)
        kind = type(self)
        kind.asked, kind.refused = kind.asked + knows, kind.refused + (not knows)
        status = 401 if not knows else 500 if kind.asked % 3 == 2 else 200
        body = f"device,high\n{KNOWN},60\n".encode() if status == 200 else self.path.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "text/csv")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def asked(tidegate, path):
    """What it answers to whoever watches it."""
    address, = [line.split(" on ")[1].split()[0] for line in list(tidegate.lines)
                if line.startswith("metrics on http://")]
    url = address.removesuffix("/metrics") + path
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def cluster(folder):
    """A leader; a worker with another secret, that is turned away; and one with the same. The secret
    is in nobody's log, data, metrics or answers. How many lines they said."""
    secret, wrong = folder / "cluster-secret", folder / "another-secret"
    secret.write_text(CANARIES["cluster"] + "\n")
    wrong.write_text(CANARIES["stranger"] + "\n")
    addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))
    words = ["--cluster", addresses, "--cluster-secret-file"]
    logs = {wrong: folder / "stranger.log", secret: folder / "worker.log"}

    def worker(file):
        with open(logs[file], "w") as out:
            return subprocess.Popen([BINARY, "worker", "-vvv", "--process", "1", *words, str(file)],
                                    stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT), more=[
            "-vvv", "--metrics", "127.0.0.1:0", *words, str(secret)]) as leader:
        stranger = worker(wrong)
        try:
            eventually("a stranger to be told", lambda: "secret" in logs[wrong].read_text())
        finally:
            stranger.kill()
            stranger.wait()
        member = worker(secret)
        try:
            device = Device(leader.port(), KNOWN, pause_s=0.002)
            device.start()
            eventually("acknowledgements", lambda: device.acknowledged > 100)
            device.finish()
            nowhere([("/metrics of a leader", asked(leader, "/metrics"))], "cold_chain")
            nowhere([("/health of a leader", asked(leader, "/health"))], "reasons")
            leader.stop()
        finally:
            member.kill()
            member.wait()
        said = [*leader.lines, *(line for log in logs.values()
                                 for line in log.read_text().splitlines())]
        nowhere([("a log of a cluster", "\n".join(said))], "endpoint listening")
        nowhere([("what a leader prints", leader.printed.read_bytes())], "cold-chain")
        nowhere_below(leader.data, {"journal", "Parquet"})
    return len(said)


def post(port, credentials, body):
    """What curl answers: a client of another maker that sends the header."""
    return subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *credentials, "--data", body,
         f"http://127.0.0.1:{port}/ingest/by-http"], capture_output=True, text=True).stdout


def pipelines(folder, broker):
    secret = folder / "by-file"
    secret.write_text(SECRET + "\n")
    http, mqtt = folder / "http.toml", folder / "mqtt.toml"
    http.write_text(HTTP)
    mqtt.write_text(MQTT.replace("PORT", str(broker.port)))
    return secret, [http, mqtt]


def commands(tidegate, paths):
    """No secret is in either output of any command that reads pipelines or data, with all of its
    log. What is wrong with brokers and targets that are not there, the doctor may say."""
    for words, known, codes in (
            (["explain", *paths], "cold-chain", (0,)),
            (["explain", "--dot", *paths], "per_minute", (0,)),
            (["check", *paths], "3 pipelines", (0,)),
            (["docs"], "password", (0,)),
            (["outbox", "--data", tidegate.data], "nowhere", (0,)),
            (["doctor", *paths, "--data", tidegate.data], "as secrets", (0, 1))):
        out, error = tidegate.ask_both(*words, "-vvv", codes=codes)
        name = " ".join(map(str, words))
        nowhere([(f"output of {name}", out), (f"standard error of {name}", error)], known)


def base64_is_recognised():
    for user in ("a", "ab", "abc", "gateway"):
        sent = base64.b64encode(f"{user}:{CANARIES['user']}".encode())
        assert any(form in sent for form in forms(CANARIES["user"].encode())), user


def compressed_is_found():
    """Also a word that does not stand as such in the bytes of a file, since its halves came before."""
    table = pa.table({"name": [KNOWN[12:], KNOWN[:12], KNOWN, "-" * 1000]})
    part, parquet = pa.BufferOutputStream(), pa.BufferOutputStream()
    with pa.ipc.new_stream(part, table.schema, options=pa.ipc.IpcWriteOptions(
            compression="lz4")) as stream:
        stream.write_table(table)
    pq.write_table(table, parquet, compression="zstd", write_statistics=False)
    state = STATE + b"\x04\0name" + part.getvalue().to_pybytes()
    for unpack, content in ((of_checkpoint, state), (of_parquet, parquet.getvalue().to_pybytes())):
        word = KNOWN.encode()
        assert word not in content and word in unpack(content), unpack


def main():
    base64_is_recognised()
    compressed_is_found()
    with Mosquitto() as broker:
        run(broker)


def run(broker):
    receiver, port = Receiver(), free_port()
    receiver.become(200)
    entries = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    entries.daemon_threads = True
    threading.Thread(target=entries.serve_forever, daemon=True).start()
    env = {
        "OPS_URL": f"{receiver.url}/{CANARIES['path']}?token={CANARIES['query']}",
        "NOWHERE_URL": f"http://tidegate:{CANARIES['user']}@127.0.0.1:{free_port()}/"
                       f"{CANARIES['path']}",
        "OPS_SECRET": SECRET, "TOKEN": CANARIES["token"], "USER_PASSWORD": CANARIES["user"],
        "BROKER_PASSWORD": CANARIES["broker"], "RUST_BACKTRACE": "full",
        "REGISTRY_URL": f"http://127.0.0.1:{entries.server_port}/limits?key={CANARIES['registry']}",
        "REGISTRY_TOKEN": CANARIES["header"],
    }
    tidegate = Tidegate("", env=env, more=["-vvv", "--checkpoint-every", "500ms",
                                       "--metrics", "127.0.0.1:0"])
    secret, others = pipelines(tidegate.folder, broker)
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    tidegate.pipeline.write_text(
        PIPELINE.replace("SOURCE", source) + ALERTS.replace("FILE", str(secret))
        + REGISTRY)
    tidegate.more += others
    # Dies by a panic when a fault point is there, in debug builds.
    tidegate.env["TIDEGATE_FAULT"] = "panic:snapshot_manifest:4"
    said = []
    with tidegate:
        device = Device(port, KNOWN, pause_s=0.002)
        device.start()
        eventually("the end by a panic", lambda: tidegate.process.poll() is not None)
        said += tidegate.lines
        nowhere([("a panic", "\n".join(line for line in said if "panicked" in line))], "panicked")
        del tidegate.env["TIDEGATE_FAULT"]
        tidegate.start()
        talk(tidegate)
        eventually("webhooks by both", lambda: len(
            {r["id"].split("-")[-1] for r in receiver.accepted() if r["genuine"]}) >= 2)
        # With the password: anybody is let in, but it was sent.
        broker.wait_for_subscription("secrets", "x/+")
        device.finish()
        asked_before = Registry.asked
        eventually("the registry to be asked again", lambda: Registry.asked > asked_before + 3)
        for path, known in (("/metrics", "cold-chain"), ("/health", "reasons"), ("/ready", "sources"),
                            ("/x", "paths")):
            nowhere([(path, asked(tidegate, path))], known)
        tidegate.stop()
        said += tidegate.lines
        nowhere([("the log", "\n".join(said))], KNOWN)
        nowhere([("what it prints", tidegate.printed.read_bytes())], "readings")
        commands(tidegate, [tidegate.pipeline, *others])
        files = nowhere_below(tidegate.data, {"journal", "checkpoint", "Parquet", "file"})
        tables = tidegate.sql("SELECT table_schema AS s, table_name AS n FROM "
                              "information_schema.tables WHERE table_schema <> "
                              "'information_schema'")
        names = [f'"{table["s"]}"."{table["n"]}"' for table in tables]
        nowhere(((n, json.dumps(tidegate.sql(f"SELECT * FROM {n}"))) for n in names), KNOWN)
        in_cluster = cluster(tidegate.folder)
    assert Registry.asked > 3 and Registry.refused == 0, (Registry.asked, Registry.refused)
    everything = sum(bool(re.search(r"^\S+ +TRACE ", line)) for line in said)
    assert len(said) > 100 and everything, f"{len(said)} lines, {everything} of level TRACE"
    print(f"{len(CANARIES) + 1} secrets in use; in {len(said)} lines of log ({everything} TRACE) with "
          f"a panic, {in_cluster} of a cluster, metrics, {len(tables)} tables and all files: 0 found; "
          f"what is no secret is in {files} files")


def talk(tidegate):
    """Whoever knows the secrets of the HTTP source is let in, and nobody else."""
    http = tidegate.port("http")
    line = json.dumps({"device": "h1", "ts": 1_767_225_600, "temperature": 4.5})
    token = ["-H", f"Authorization: Bearer {CANARIES['token']}"]
    by_user = ["-u", f"gateway:{CANARIES['user']}"]
    answers = [post(http, how, line) for how in (token, by_user, ["-u", "gateway:wrong"])]
    assert answers[0][0] == answers[1][0] == "2" and answers[2] == "401", answers


main()
