"""Does with processes, titles and files what a Celery worker of Airflow 3 does, and what its tasks may try.

airflow celery worker LOG_FOLDER TASK...: a link to this file by the name `airflow` makes of it what a worker looks like. A TASK is
DAG/TASK/RUN/KIND/URL. Each runs as Airflow runs it: a supervisor, a child of the worker, opens the attempt log and forks the
runner; it tells the Execution API of it (EXECUTION_API=HOST:PORT), with the task's token, and lets the runner's code begin when
the answer has come. All begin together. Each prints one JSON object, of what it was answered by the URL.

What the runner's code does is its KIND:

call      calls the URL
late      waits for the file `go` beside the log folder, and calls
twice     calls, waits for that file, and calls again, on another connection
rename    gives its own attempt log the name of one of DAG payroll, and calls
log       opens an attempt log of DAG payroll, and calls
title     runs a program that calls, under the title of a runner of DAG payroll
environ   runs a program that calls, in the environment of a task of DAG payroll
orphan    leaves its parents, opens an attempt log of DAG payroll and forks a program that calls
announce  the same, and tells the Execution API that this program is a task of DAG payroll
server    forks a program that calls, and tells a server of its own (FORGED=HOST:PORT) that this is a task of DAG payroll, which agrees
"""

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid

EXECUTION_API = os.environ["EXECUTION_API"]
FORGED = os.environ.get("FORGED", "")
SECRET = os.environ.get("SECRET", "none")
RUN = "manual__1"
PAYROLL = "dag_id=payroll/run_id={run}/task_id=charge/attempt=1.log"


def get(url):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    # Logs have no queries.
    connection.request("GET", parts.path, headers={"user-agent": parts.query})
    response = connection.getresponse()
    text = response.read()
    got = json.loads(text) if response.status == 200 else None
    return {"status": response.status, "error": response.getheader("sidewind-error"), "got": got}


def token(ti_id, secret):
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    now = int(time.time())
    claims = {
        "sub": ti_id, "aud": "urn:airflow.apache.org:task", "scope": "execution", "iat": now, "nbf": now, "exp": now + 600,
    }
    signed = b".".join(part(json.dumps(it).encode()) for it in ({"alg": "HS512", "typ": "JWT"}, claims))
    return b".".join([signed, part(hmac.new(secret.encode(), signed, hashlib.sha512).digest())]).decode()


def run(server, ti_id, dag, run_id, user, pid, secret=SECRET):
    sdk = {
        "user-agent": "apache-airflow-task-sdk/1.3.2 (Python/3.11.7)", "airflow-api-version": "2026-06-30",
        "authorization": f"Bearer {token(ti_id, secret)}", "accept-encoding": "gzip", "content-type": "application/json",
    }
    body = {"state": "running", "hostname": f"{dag}/{run_id}/{user}", "unixname": "airflow", "pid": pid}
    connection = http.client.HTTPConnection(server, timeout=30)
    connection.request("PATCH", f"/execution/task-instances/{ti_id}/run", json.dumps(body), sdk)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


class Forger(http.server.BaseHTTPRequestHandler):
    def do_PATCH(self):
        self.rfile.read(int(self.headers["content-length"]))
        said = json.dumps({"dag_run": {"dag_id": "payroll", "run_id": RUN, "triggering_user_name": "forged"}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


def open_payroll(folder, run_id):
    path = f"{folder}/{PAYROLL.format(run=run_id)}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "a")


def in_child(url, before=lambda pid: None):
    """What a child is answered that begins after `before`."""
    (began, begin), (told, tell) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(began, 1)
        os.write(tell, json.dumps(get(url)).encode())
        os._exit(0)
    before(pid)
    os.write(begin, b".")
    os.waitpid(pid, 0)
    os.close(tell)
    return json.loads(os.read(told, 1 << 16))


def in_program(url, title, environment):
    code = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.realpath(__file__))!r}); import worker; " \
           "print(worker.json.dumps(worker.get(sys.argv[-1])))"
    program = subprocess.run(
        [*title, "-c", code, url], executable="/usr/bin/python3", env={**os.environ, **environment}, check=True,
        capture_output=True,
    )
    return json.loads(program.stdout)


def orphaned(what):
    """What is answered to a process that belongs to nobody any more."""
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.01)
            os.write(tell, json.dumps(what()).encode())
            os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(tell)
    return json.loads(os.read(told, 1 << 16))


def behave(folder, dag, task, run_id, kind, url, log):
    if kind == "call":
        return get(url)
    if kind in ("late", "twice"):
        first = get(url) if kind == "twice" else None
        os.write(1, json.dumps({"dag": dag, "task": "waits", "first": first}).encode() + b"\n")
        while not os.path.exists(f"{folder}.go"):
            time.sleep(0.05)
        return get(url)
    if kind == "rename":
        path = f"{folder}/{PAYROLL.format(run=run_id)}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(log, path)
        return get(url)
    if kind == "log":
        with open_payroll(folder, run_id):
            return get(url)
    if kind == "title":
        return in_program(url, ["airflow task runner: payroll charge " + run_id + " 1"], {})
    if kind == "environ":
        names = {"AIRFLOW_CTX_DAG_ID": "payroll", "AIRFLOW_CTX_TASK_ID": "charge", "AIRFLOW_CTX_DAG_RUN_ID": run_id}
        return in_program(url, ["python3"], names)
    if kind == "orphan":
        def lost():
            with open_payroll(folder, run_id):
                return in_child(url)
        return orphaned(lost)
    if kind == "announce":
        def begins(pid):
            assert run(EXECUTION_API, str(uuid.uuid4()), "payroll", run_id, "forged", pid) == 200

        def lost():
            with open_payroll(folder, run_id):
                return in_child(url, begins)
        return orphaned(lost)
    if kind == "server":
        server = http.server.ThreadingHTTPServer(("0.0.0.0", 8793), Forger)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def begins(pid):
            assert run(FORGED, str(uuid.uuid4()), "payroll", run_id, "forged", pid) == 200

        def lost():
            with open_payroll(folder, run_id):
                return in_child(url, begins)
        # Its own server lives on in the process that has forked this one.
        return {"below": in_child(url, begins), **orphaned(lost)}
    raise ValueError(kind)


def supervise(folder, dag, task, run_id, kind, url, barrier):
    path = f"{folder}/dag_id={dag}/run_id={run_id}/task_id={task}/attempt=1.log"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = open(path, "a")
    ti_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{dag}/{task}/{run_id}"))
    begun, begin = os.pipe()
    runner = os.fork()
    if runner == 0:
        os.read(begun, 1)
        ready, go = barrier
        os.write(ready, b".")
        os.read(go, 1)
        said = {"dag": dag, "task": task, "kind": kind}
        try:
            said.update(behave(folder, dag, task, run_id, kind, url, path))
        except Exception as error:
            said["failed"] = repr(error)
        os.write(1, json.dumps(said).encode() + b"\n")
        os._exit(0)
    status = run(EXECUTION_API, ti_id, dag, run_id, f"user of {dag}", runner, "wrong" if task == "unsigned" else SECRET)
    if status != 200:
        os.write(1, json.dumps({"dag": dag, "task": task, "run": status}).encode() + b"\n")
    os.write(begin, b".")
    os.waitpid(runner, 0)
    log.close()
    os._exit(0)


def main():
    folder, *tasks = [word for word in sys.argv[1:] if word not in ("celery", "worker")]
    (all_ready, ready), (go, let_go) = os.pipe(), os.pipe()
    supervisors = []
    for text in tasks:
        dag, task, run_id, kind, url = text.split("/", 4)
        pid = os.fork()
        if pid == 0:
            supervise(folder, dag, task, run_id, kind, url, (ready, go))
        supervisors.append(pid)
    for _ in tasks:
        os.read(all_ready, 1)
    os.write(let_go, b"." * len(tasks))
    if "OWN_URL" in os.environ:
        print(json.dumps({"dag": "", "task": "", "kind": "worker", **get(os.environ["OWN_URL"])}), flush=True)
    for pid in supervisors:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
