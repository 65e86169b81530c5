"""Clients of InfluxDB on Tidegate, as they are: influxdb-client (version 2: one by one, in batches,
gzip), the `influx` command (version 1: insert and import), and curl; then curl on /ingest."""

import gzip
import json
import shutil
import subprocess

from influxdb_client import InfluxDBClient, Point, WriteOptions, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from harness import PATIENCE_S, START_S, Tidegate, eventually

PIPELINES = """name = "hosts"
[source]
type = "http"
listen = "127.0.0.1:0"
tokens = { tests = "${env:TIDEGATE_TEST_TOKEN}" }
users = { ann = "${env:TIDEGATE_TEST_TOKEN}" }
[reading]
format = "influx"
device = "host"
time = "_time"
[reading.fields]
measurement = { type = "string", field = "_measurement" }
usage = "float64"
n = "int64"
up = "bool"
note = "string"
[[table]]
from = "readings"
freshness = "1s"
"""
TOKEN = "s3cret-of-tests"
MANY = 2_000
NOTE = 'quotes " and \\ backslashes, commas = equals\nand a second line'


def run(*command, data=None):
    done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.decode()


def python_client(url, tidegate):
    with InfluxDBClient(url=url, token=TOKEN, org="any", enable_gzip=True) as client:
        assert client.ping() and client.health().status == "pass" and client.ready().status
        write = client.write_api(write_options=SYNCHRONOUS)
        point = (Point("m,e a=s").tag("host", "py one,x=y").field("usage", 12.5).field("n", 7)
                 .field("up", True).field("note", NOTE))
        write.write(bucket="hosts", record=point.time(START_S, WritePrecision.S))
        batches = client.write_api(write_options=WriteOptions(batch_size=300, flush_interval=50))
        for i in range(MANY):
            time = START_S * 1000 + i
            batches.write(bucket="hosts", write_precision=WritePrecision.MS, record={
                "measurement": "cpu", "tags": {"host": "py-batch"},
                "fields": {"usage": i / 2, "n": i}, "time": time})
        batches.close()
        try:
            write.write(bucket="nothing", record="m v=1")
            raise AssertionError("a bucket that is no pipeline was taken")
        except ApiException as error:
            assert error.status == 404 and "nothing" in json.loads(error.body)["message"], error
    with InfluxDBClient(url=url, token="wrong", org="any") as client:
        try:
            client.write_api(write_options=SYNCHRONOUS).write(bucket="hosts", record="m v=1")
            raise AssertionError("a wrong token was taken")
        except ApiException as error:
            assert error.status == 401, error
    rows = eventually("what python wrote", lambda: rows_of(tidegate, "py-batch", MANY))
    assert rows[0]["s"] == sum(range(MANY)) and rows[0]["span"] == MANY - 1, rows
    rows = tidegate.sql("SELECT measurement, device, usage, n, up, note, to_unixtime(time) AS t "
                        "FROM hosts.readings WHERE device LIKE 'py one%'")
    assert rows == [{"measurement": "m,e a=s", "device": "py one,x=y", "usage": 12.5, "n": 7,
                     "up": True, "note": NOTE, "t": START_S}], rows


def rows_of(tidegate, device, n):
    """The sum of `n` and the milliseconds from first to last of a device that has `n` rows."""
    rows = tidegate.sql("SELECT count(*) AS c, sum(n) AS s, (arrow_cast(max(time), 'Int64') - "
                        "arrow_cast(min(time), 'Int64')) / 1000 AS span "
                        f"FROM hosts.readings WHERE device = '{device}'")
    return rows[0]["c"] == n and rows


def influx_command(port, tidegate):
    influx = shutil.which("influx")
    assert influx, "the Debian package influxdb-client is needed"
    base = [influx, "-host", "127.0.0.1", "-port", str(port), "-username", "ann",
            "-password", TOKEN]
    assert "hosts" in run(*base, "-execute", "SHOW DATABASES")
    run(*base, "-database", "hosts", "-execute", f"INSERT cpu,host=shell usage=1.5,n=1i {START_S}"
        "000000000")
    lines = "".join(f"cpu,host=import usage={i}.25,n={i}i {START_S + i}\n" for i in range(MANY))
    file = tidegate.folder / "import.txt"
    file.write_text("# DDL\nCREATE DATABASE hosts\n# DML\n# CONTEXT-DATABASE: hosts\n" + lines)
    said = run(*base, "-import", f"-path={file}", "-precision=s")
    assert "ailed" not in said.replace("Failed 0", ""), said
    eventually("what influx imported", lambda: rows_of(tidegate, "import", MANY))
    rows = eventually("what influx inserted", lambda: rows_of(tidegate, "shell", 1))
    assert rows[0]["s"] == 1, rows


def curl(url, tidegate):
    status = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}")
    auth = ("-H", f"Authorization: Bearer {TOKEN}")
    line = f"cpu,host=curl n=1i {START_S}"
    write = f"{url}/write?db=hosts&precision=s"
    assert run(*status, "-d", line, f"{write}&u=ann&p={TOKEN}") == "204"
    assert run(*status, "-d", line, write) == "401"
    packed = ("-H", "Content-Encoding: gzip", "--data-binary", "@-")
    body = gzip.compress(line.replace("1i", "2i").encode())
    assert run(*status, *auth, *packed, write, data=body) == "204"
    key = ("-H", "Idempotency-Key: one")
    ingest = f"{url}/ingest/hosts?precision=s"
    first = run("curl", "-sS", *auth, *key, "-d", line, ingest)
    again = run("curl", "-sS", *auth, *key, "-d", line, ingest)
    assert json.loads(first) == {"accepted": 1}, first
    assert json.loads(again) == {"accepted": 0, "duplicate": True}, again
    # A broken line costs only itself, and is found among the rejects.
    body = f"cpu,host=curl n=3i {START_S}\ncpu,host=curl n=\ncpu,host=curl n=4i {START_S}\n"
    assert run(*status, *auth, "--data-binary", body, write) == "204"
    rows = eventually("what curl wrote", lambda: rows_of(tidegate, "curl", 5))
    assert rows[0]["s"] == 1 + 2 + 1 + 3 + 4, rows
    rejects = tidegate.sql("SELECT reason, CAST(payload AS VARCHAR) AS p FROM system.rejects")
    assert rejects == [{"reason": "parse", "p": "cpu,host=curl n="}], rejects


def main():
    with Tidegate(PIPELINES, env={"TIDEGATE_TEST_TOKEN": TOKEN}) as tidegate:
        port = tidegate.port("http")
        url = f"http://127.0.0.1:{port}"
        python_client(url, tidegate)
        influx_command(port, tidegate)
        curl(url, tidegate)
        tidegate.stop()
    print(f"influxdb-client, influx, curl: {2 * MANY + 7} lines, none lost or doubled")


main()
