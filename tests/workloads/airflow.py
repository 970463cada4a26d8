"""What Airflow's API server answers where a gateway in front of it looks: Python's standard library and nothing else.

GET  /api/v2/monitor/health   200 whatever the state, as Airflow has it: the body says how the database is
GET  /stream                  a response that does not end before its client does
POST /auth/token, /login      401: no password is right
GET  /                        the name of this server

airflow.py ADDRESS PORT NAME SICK: while the file SICK is there, the database cannot be reached.
"""

import json
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, SICK = sys.argv[3], sys.argv[4]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/api/v2/monitor/health":
            database = "unhealthy" if os.path.exists(SICK) else "healthy"
            # The scheduler's state is of the whole deployment, and no reason to leave one API server.
            health = {
                "metadatabase": {"status": database},
                "scheduler": {"status": "unhealthy", "latest_scheduler_heartbeat": None},
                "triggerer": {"status": None, "latest_triggerer_heartbeat": None},
                "dag_processor": {"status": None, "latest_dag_processor_heartbeat": None},
            }
            self.answer(200, json.dumps(health))
        elif self.path == "/stream":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nfirst\r\n")
            self.wfile.flush()
            self.rfile.read(1)
            self.close_connection = True
        else:
            self.answer(200, json.dumps({"server": NAME, "client": self.headers.get("x-forwarded-for")}))

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(401, json.dumps({"detail": "Invalid credentials"}))

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
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
