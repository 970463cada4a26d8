"""The part of Airflow's Execution API that a task's supervisor uses, as Airflow 3.3 answers: gzip in chunks, a new token.

execution_api.py ADDRESS PORT. What a task instance belongs to is taken from the `hostname` that its supervisor gives:
DAG/RUN/USER. A DAG whose name begins with `odd_` gets a response that is not what it claims to be. `GET /calls` lists the
requests that came.

`GET /mode/MODE` says how others are answered from then on: `ok`; `503`; `reset`, before they are read; or `lost`, when they were
read and done.
"""

import gzip
import http.server
import json
import socket
import struct
import sys
import threading

VARIABLES = {"lab_var": "hello"}
CALLS = []
RUNS = {}
LOCK = threading.Lock()
MODE = ["ok"]


def run_response(dag, run, user):
    return {
        "dag_run": {
            "dag_id": dag, "run_id": run, "logical_date": None, "run_type": "manual", "conf": {},
            "team_name": "finance", "triggering_user_name": user,
        },
        "task_reschedule_count": 0, "max_tries": 1, "should_retry": True, "variables": [], "connections": [],
    }


def odd(dag, answer):
    """Body and coding."""
    text = json.dumps(answer).encode()
    return {
        "odd_not_gzip": (text, "gzip"),
        "odd_brotli": (text, "br"),
        "odd_bomb": (gzip.compress(b" " * (32 << 20)) if dag == "odd_bomb" else b"", "gzip"),
        "odd_huge": (text.replace(b"{}", b'"' + b"x" * (8 << 20) + b'"') if dag == "odd_huge" else b"", None),
        "odd_kwargs": (text[:-1] + b', "next_kwargs": "' + b"x" * (8 << 20) + b'"}' if dag == "odd_kwargs" else b"", None),
        "odd_no_run": (b'{"max_tries": 1}', None),
        "odd_types": (b'{"dag_run": {"dag_id": 7, "run_id": []}}', None),
        "odd_json": (b'{"dag_run": ', None),
    }[dag]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", coding=None, chunked=False):
        self.send_response(status)
        if status == 204:
            self.end_headers()
            return
        self.send_header("content-type", "application/json")
        if coding:
            self.send_header("content-encoding", coding)
        if not chunked:
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.send_header("refreshed-api-token", "a-new-secret-token")
        self.end_headers()
        for at in range(0, len(body), 100_000):
            piece = body[at:at + 100_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle_any(self):
        mode = MODE[0]
        if self.path.startswith("/mode/"):
            MODE[0] = self.path.rsplit("/", 1)[1]
            return self.answer(200, b"{}")
        if mode == "reset" and self.path != "/calls":
            return self.reset()
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if self.path == "/calls":
            with LOCK:
                return self.answer(200, json.dumps(CALLS).encode())
        with LOCK:
            headers = {name.lower(): value for name, value in self.headers.items()}
            CALLS.append({"method": self.command, "path": self.path, "headers": headers})
        if mode == "503":
            return self.answer(503, b'{"detail": "not now"}')
        if mode == "lost":
            return self.reset()
        if self.path.endswith("/run"):
            said = json.loads(body)["hostname"]
            # Who has begun an instance may say so again, and nobody else may.
            if RUNS.setdefault(self.path, said) != said:
                return self.answer(409, b'{"detail": {"reason": "invalid_state"}}')
            dag, run, user = said.split("/")
            answer = run_response(dag, run, user)
            if dag.startswith("odd_"):
                body, coding = odd(dag, answer)
                return self.answer(200, body, coding, chunked=True)
            return self.answer(200, gzip.compress(json.dumps(answer).encode()), "gzip", chunked=True)
        if self.path.endswith("/rtif"):
            return self.answer(201, b'"OK"')
        if self.path.startswith("/execution/variables/"):
            key = self.path.rsplit("/", 1)[1]
            if key in VARIABLES:
                return self.answer(200, json.dumps({"key": key, "value": VARIABLES[key]}).encode())
            return self.answer(404, b'{"detail": {"reason": "not_found"}}')
        if self.command == "POST":
            return self.answer(201, b'"OK"')
        return self.answer(204)

    do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = handle_any

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


address, port = sys.argv[1:3]
Server((address, int(port)), Handler).serve_forever()
