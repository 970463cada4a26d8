"""An HTTP API as somebody might write it who has never heard of a mesh: Python's standard library and nothing else.

GET  /orders        a list
GET  /flaky         503 to every third request
GET  /failing       503 always
POST /orders        503 always, and counts how often it was asked
GET  /posts         how often POST /orders was asked
GET  /echo          the request line and headers as JSON
POST /echo          the body
GET  /slow?ms=N     answers after N milliseconds
GET  /bytes/N       N bytes

A third argument is how many milliseconds each list takes longer.
"""

import itertools
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

flaky = itertools.count(1)
posts = 0
posts_lock = threading.Lock()
delay = int(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The header and the body in one segment, and no waiting for acknowledgements.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/orders":
            time.sleep(delay)
            self.answer(200, b'[{"id": 1, "item": "anemometer"}]\n', "application/json")
        elif url.path == "/flaky":
            number = next(flaky)
            if number % 3 == 0:
                self.answer(503, b"busy, try again\n")
            else:
                self.answer(200, b"done\n")
        elif url.path == "/failing":
            self.answer(503, b"always busy\n")
        elif url.path == "/posts":
            self.answer(200, str(posts).encode())
        elif url.path == "/echo":
            headers = [[name, value] for name, value in self.headers.items()]
            document = {"method": self.command, "path": self.path, "headers": headers, "client": self.client_address[0]}
            self.answer(200, json.dumps(document).encode(), "application/json")
        elif url.path == "/slow":
            time.sleep(int(parse_qs(url.query)["ms"][0]) / 1000)
            self.answer(200, b"at last\n")
        elif url.path.startswith("/bytes/"):
            self.answer(200, b"x" * int(url.path.rsplit("/", 1)[1]), "application/octet-stream")
        else:
            self.answer(404, b"no such thing\n")

    def do_POST(self):
        global posts
        body = self.body()
        if self.path == "/echo":
            self.answer(200, body, "application/octet-stream")
        elif self.path == "/orders":
            with posts_lock:
                posts += 1
            self.answer(503, b"busy\n")
        else:
            self.answer(404, b"no such thing\n")

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format, *arguments):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET
    request_queue_size = 1024


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
