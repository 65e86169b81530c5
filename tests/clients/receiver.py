"""A webhook receiver that behaves well or badly, as it is told, and remembers every request. It
checks signatures with Python's own hmac."""

import base64
import hashlib
import hmac
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = b"a secret of the outbox test"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """`mode` is a status code, or "hang", "slow" (2xx after a while) or "down" (nobody listens)."""

    def __init__(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.lock, self.seen, self.mode, self.server = threading.Lock(), [], "down", None

    def become(self, mode):
        if self.server and mode == "down":
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        self.mode = mode
        if not self.server and mode != "down":
            handler = type("Handler", (Handler,), {"receiver": self})
            self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
            self.server.daemon_threads = True
            threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def requests(self):
        with self.lock:
            return list(self.seen)

    def accepted(self):
        return [r for r in self.requests() if r["status"] // 100 == 2]


class Handler(BaseHTTPRequestHandler):
    receiver = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        identifier = self.headers["webhook-id"]
        signed = f'{identifier}.{self.headers["webhook-timestamp"]}.'.encode() + body
        tag = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        genuine = f"v1,{tag}" in self.headers["webhook-signature"].split()
        mode = self.receiver.mode
        request = {"id": identifier, "body": body.decode(), "genuine": genuine, "status": 0}
        with self.receiver.lock:
            self.receiver.seen.append(request)
        if mode == "hang":
            time.sleep(60)
            return
        if mode == "slow":
            time.sleep(0.3)
        status = mode if isinstance(mode, int) else 200
        # Noted before it is answered: a client that has heard 200 knows that we know.
        request["status"] = status
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "1")
            self.send_header("content-length", "0")
            self.end_headers()
        except OSError:
            # Whoever asked was killed meanwhile.
            pass

    def log_message(self, *_):
        pass
