"""Secrets in the environment, in files, in URLs and in headers reach whom they are for, and are
nowhere else: not in logs (everything logged), totals, `explain`, `docs`, `check`, what a panic
prints, the data folder, the tables."""

import json
import os
import re
import subprocess

from harness import ENDPOINT, PIPELINE, Device, Mosquitto, Tidegate, eventually, free_port
from receiver import SECRET, Receiver

# Found by these words alone, however they are cut or quoted.
CANARIES = {name: f"canary-{name}-{os.urandom(6).hex()}"
            for name in ("path", "query", "broker", "token", "user")}

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
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                yield os.path.join(path, name), file.read()


def nowhere(places):
    for place, content in places:
        if isinstance(content, str):
            content = content.encode()
        for name, canary in CANARIES.items():
            assert canary.encode() not in content, f"the canary of {name} is in {place}"
        # The key of the signature, too, and what it is made from.
        for word in (SECRET.encode(), SECRET.removeprefix("whsec_").encode()):
            assert word not in content, f"the webhook's secret is in {place}"


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


def main():
    with Mosquitto() as broker:
        run(broker)


def run(broker):
    receiver, port = Receiver(), free_port()
    receiver.become(200)
    env = {
        "OPS_URL": f"{receiver.url}/{CANARIES['path']}?token={CANARIES['query']}",
        "NOWHERE_URL": f"http://tidegate:{CANARIES['user']}@127.0.0.1:{free_port()}/"
                       f"{CANARIES['path']}",
        "OPS_SECRET": SECRET, "TOKEN": CANARIES["token"], "USER_PASSWORD": CANARIES["user"],
        "BROKER_PASSWORD": CANARIES["broker"], "RUST_BACKTRACE": "full",
    }
    tidegate = Tidegate("", env=env, more=["-vvv", "--checkpoint-every", "500ms"])
    secret, others = pipelines(tidegate.folder, broker)
    source = ENDPOINT.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    tidegate.pipeline.write_text(
        PIPELINE.replace("SOURCE", source) + ALERTS.replace("FILE", str(secret)))
    tidegate.more += others
    # Dies by a panic when a fault point is there, in debug builds.
    tidegate.env["TIDEGATE_FAULT"] = "panic:snapshot_manifest:4"
    said, with_backtrace = [], False
    with tidegate:
        device = Device(port, "d1", pause_s=0.002)
        device.start()
        eventually("the end by a panic", lambda: tidegate.process.poll() is not None)
        said += tidegate.lines
        with_backtrace = any("panicked" in line for line in said)
        del tidegate.env["TIDEGATE_FAULT"]
        tidegate.start()
        http = tidegate.port("http")
        line = json.dumps({"device": "h1", "ts": 1_767_225_600, "temperature": 4.5})
        token = ["-H", f"Authorization: Bearer {CANARIES['token']}"]
        by_user = ["-u", f"gateway:{CANARIES['user']}"]
        answers = [post(http, how, line) for how in (token, by_user, ["-u", "gateway:wrong"])]
        assert answers[0][0] == answers[1][0] == "2" and answers[2] == "401", answers
        eventually("webhooks by both", lambda: len(
            {r["id"].split("-")[-1] for r in receiver.accepted() if r["genuine"]}) >= 2)
        # With the password: anybody is let in, but it was sent.
        broker.wait_for_subscription("secrets", "x/+")
        device.finish()
        tidegate.stop()
        said += tidegate.lines
        paths = [tidegate.pipeline, *others]
        nowhere([("the log", "\n".join(said))])
        nowhere((" ".join(map(str, words)), tidegate.ask(*words)) for words in (
            ["explain", *paths], ["explain", "--dot", *paths], ["check", *paths], ["docs"],
            ["outbox", "--data", tidegate.data]))
        nowhere(everything_below(tidegate.data))
        tables = tidegate.sql("SELECT table_schema AS s, table_name AS n FROM "
                              "information_schema.tables WHERE table_schema <> "
                              "'information_schema'")
        for table in tables:
            name = f'"{table["s"]}"."{table["n"]}"'
            nowhere([(name, json.dumps(tidegate.sql(f"SELECT * FROM {name}")))])
    assert with_backtrace, "no panic: the test has not seen what one prints"
    assert len(said) > 100 and any(re.search("TRACE|DEBUG", line) for line in said)
    print(f"{len(CANARIES) + 1} secrets in use; in {len(said)} lines of log with a panic, "
          f"{len(tables)} tables and all files: 0 found")


main()
