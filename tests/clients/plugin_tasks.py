"""Runs tasks as a worker of Airflow 3.2 or later does, with the plugin `sidewind-airflow` in each.

plugin_tasks.py TASK...: a TASK is DAG/TASK/RUN/URL. Each has a process that hides its open files from everybody else, as
Airflow's do, and calls the URL: with http.client where the task's name is `python`, with curl below a shell where it is `shell`,
in a forked child where it is `forked`; where it is `visible` too, in processes that hide nothing, as before Airflow 3.2. What they get is printed, a JSON object for each task. The worker itself has a
connection open that all of them inherit.
"""

import ctypes
import http.client
import json
import os
import subprocess
import sys
import types
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "airflow-plugin"))

try:
    import pluggy  # noqa: F401
except ImportError:
    sys.modules["pluggy"] = types.SimpleNamespace(HookimplMarker=lambda _: lambda function: function)

from sidewind_airflow import listener  # noqa: E402

PR_SET_DUMPABLE = 4


def get(url):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request("GET", parts.path)
    return json.loads(connection.getresponse().read())


def call(task, url):
    if task == "shell":
        shell = ["bash", "-c", 'exec "$@" & wait', "sh", "curl", "-sS", "--max-time", "20", url]
        return json.loads(subprocess.run(shell, check=True, capture_output=True).stdout)
    if task in ("forked", "visible"):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writes, json.dumps(get(url)).encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as said:
            got = said.read()
        os.waitpid(child, 0)
        return json.loads(got)
    return get(url)


def run(dag, task, run_id, url):
    if task != "visible" and ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl")
    ti = types.SimpleNamespace(dag_id=dag, task_id=task, run_id=run_id, map_index=3, try_number=2, id=None)
    listener.on_task_instance_running("queued", ti)
    said = json.dumps({"dag": dag, "task": task, "got": call(task, url)})
    os.write(1, said.encode() + b"\n")
    listener.on_task_instance_success("running", ti)
    os._exit(0)


def main():
    runners = []
    for words in sys.argv[1:]:
        pid = os.fork()
        if pid == 0:
            run(*words.split("/", 3))
        runners.append(pid)
    for pid in runners:
        os.waitpid(pid, 0)
    # Nobody's.
    os.write(1, json.dumps({"dag": "worker", "got": get(sys.argv[1].split("/", 3)[3])}).encode() + b"\n")


main()
