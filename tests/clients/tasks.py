"""Does with processes, titles and files what an Airflow worker does when it runs tasks.

tasks.py LOG_FOLDER TASK...: a TASK is DAG/TASK/RUN/URL. Each runs as Airflow runs it: a supervisor opens the attempt log and
forks the runner, whose code calls the URL: with http.client where the task's name is `python`, with curl below a shell where it
is `shell`. What they get is printed, a JSON object for each task. LOG_FOLDER is what Airflow calls base_log_folder.

With EXECUTION_API=HOST:PORT in the environment the supervisor tells that API of the task as Airflow 3 does, with USER as the
one who triggered the run, before the task's own code begins.
"""

import http.client
import json
import os
import subprocess
import sys
import urllib.parse
import uuid

EXECUTION_API = os.environ.get("EXECUTION_API")


def call(task, url, forged):
    if task == "shell":
        flags = [flag for header in forged.items() for flag in ("-H", ": ".join(header))]
        shell = ["bash", "-c", 'exec "$@" & wait', "sh", "curl", "-sS", "--max-time", "20", *flags, url]
        return json.loads(subprocess.run(shell, check=True, capture_output=True).stdout)
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request("GET", parts.path, headers=forged)
    return json.loads(connection.getresponse().read())


CONNECTION = None


def execution_api(method, ti_id, action, body, headers=None):
    """By the one connection that a supervisor has, as Airflow's client keeps it."""
    global CONNECTION
    sdk = {
        "user-agent": "apache-airflow-task-sdk/1.3.2 (Python/3.11.7)", "airflow-api-version": "2026-06-30",
        "correlation-id": str(uuid.uuid4()), "authorization": "Bearer a-secret-token", "accept-encoding": "gzip",
        "content-type": "application/json",
    }
    CONNECTION = CONNECTION or http.client.HTTPConnection(EXECUTION_API, timeout=20)
    path = f"/execution/task-instances/{ti_id}/{action}"
    CONNECTION.request(method, path, json.dumps(body), {**sdk, **(headers or {})})
    response = CONNECTION.getresponse()
    return response.status, len(response.read()), response.getheader("refreshed-api-token")


def announce(ti_id, dag, run, runner):
    user = f"user of {dag}" if not dag.startswith("odd_") else "nobody"
    begun = {"state": "running", "hostname": f"{dag}/{run}/{user}", "unixname": "airflow", "pid": runner}
    said = execution_api("PATCH", ti_id, "run", begun)
    parent = f"00-{uuid.uuid5(uuid.NAMESPACE_OID, run).hex}-{ti_id.replace('-', '')[:16]}-00"
    execution_api("PUT", ti_id, "rtif", {}, {"traceparent": parent})
    return said


def supervise(folder, dag, task, run, url, output):
    path = f"{folder}/dag_id={dag}/run_id={run}/task_id={task}/attempt=1.log"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = open(path, "a")
    ti_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{dag}/{task}/{run}"))
    waits, begins = os.pipe()
    runner = os.fork()
    if runner == 0:
        os.read(waits, 1)
        # What a task's own code may say of itself.
        forged = {"x-airflow-dag-id": "forged", "baggage": "airflow.dag_id=forged,k=v"}
        said = json.dumps({"dag": dag, "task": task, "run": run, "got": call(task, url, forged)})
        os.write(output, said.encode() + b"\n")
        os._exit(0)
    if EXECUTION_API:
        said = announce(ti_id, dag, run, runner)
        os.write(output, json.dumps({"dag": f"{dag} run", "got": said}).encode() + b"\n")
    os.write(begins, b".")
    os.waitpid(runner, 0)
    if EXECUTION_API:
        execution_api("PATCH", ti_id, "state", {"state": "success"})
    log.close()
    os._exit(0)


def main():
    folder, *tasks = sys.argv[1:]
    supervisors = []
    for dag, task, run, url in (task.split("/", 3) for task in tasks):
        pid = os.fork()
        if pid == 0:
            supervise(folder, dag, task, run, url, 1)
        supervisors.append(pid)
    for pid in supervisors:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
