"""moto as an S3 server, and a proxy before it that loses, refuses and delays what it is told to."""

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from harness import eventually, free_port, listens

# How long a PUT takes in the mode "slow".
SLOW_PUT_S = float(os.environ.get("TIDEGATE_SLOW_PUT_S", "1"))
# These belong to one connection, or are written anew.
OWN_HEADERS = {"connection", "transfer-encoding", "content-length", "date", "server"}


class S3:
    """moto with one bucket, `plant`; it keeps everything in memory. With a proxy, clients are told
    its address."""

    def __init__(self, proxied=False):
        self.server_port = free_port()
        self.proxy = Proxy(self.server_port) if proxied else None
        self.port = self.proxy.port if proxied else self.server_port
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }

    def __enter__(self):
        import boto3
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.server_port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        eventually("the S3 server", lambda: listens(self.server_port))
        os.environ.update(self.env)
        self.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.server_port}")
        self.client.create_bucket(Bucket="plant")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def names(self, prefix):
        """All objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="plant", Prefix=prefix)
        return sorted(o["Key"] for page in pages for o in page.get("Contents", []))

    def read(self, name):
        return self.client.get_object(Bucket="plant", Key=name)["Body"].read()

    def copy(self, prefix, folder):
        """Every object below a prefix as a file below a folder, for readers that know no S3."""
        for name in self.names(prefix):
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))
        return folder


class Proxy:
    """`mode`: "good"; "down" (connections are closed); "storm" (503 for everything); "lost" (of
    PUTs, one in ten is done and not answered); "slow" (each PUT takes `slow_s`). `good_put_s` is when
    the first PUT was done that began while it was good, of those with `watched` in their path."""

    def __init__(self, to):
        self.to, self.mode, self.slow_s, self.lost = to, "good", SLOW_PUT_S, 0
        self.moments, self.good_put_s, self.watched = random.Random(7), None, ""
        handler = type("Handler", (Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    proxy, protocol_version = None, "HTTP/1.1"

    def _pass(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        mode, put = self.proxy.mode, self.command == "PUT"
        if mode == "down":
            self.close_connection = True
            return
        if mode == "storm":
            self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if mode == "slow" and put:
            time.sleep(self.proxy.slow_s)
        behind = http.client.HTTPConnection("127.0.0.1", self.proxy.to)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        status, headers, content = answer.status, answer.getheaders(), answer.read()
        behind.close()
        if mode == "lost" and put and self.proxy.moments.random() < 0.1:
            self.proxy.lost += 1
            self.close_connection = True
            return
        watched = put and mode == "good" and self.proxy.watched in self.path
        if watched and self.proxy.good_put_s is None:
            self.proxy.good_put_s = time.monotonic()
        self._answer(status, headers, content)

    def _answer(self, status, headers, content):
        length = len(content)
        try:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = int(value)
                if name.lower() not in OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("content-length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:
            # Whoever asked has gone.
            pass

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def log_message(self, *_):
        pass
