"""Does with processes, titles and files what an Airflow worker does when it runs tasks.

tasks.py LOG_FOLDER TASK...: a TASK is DAG/TASK/RUN/URL. Each runs as Airflow runs it: a supervisor opens the attempt log and
forks the runner, whose code calls the URL: with http.client where the task's name is `python`, with curl below a shell where it
is `shell`. What they get is printed, a JSON object for each task. LOG_FOLDER is what Airflow calls base_log_folder.
"""

import http.client
import json
import os
import subprocess
import sys
import urllib.parse


def call(task, url, forged):
    if task == "shell":
        flags = [flag for header in forged.items() for flag in ("-H", ": ".join(header))]
        shell = ["bash", "-c", 'exec "$@" & wait', "sh", "curl", "-sS", "--max-time", "20", *flags, url]
        return json.loads(subprocess.run(shell, check=True, capture_output=True).stdout)
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request("GET", parts.path, headers=forged)
    return json.loads(connection.getresponse().read())


def supervise(folder, dag, task, run, url, output):
    path = f"{folder}/dag_id={dag}/run_id={run}/task_id={task}/attempt=1.log"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = open(path, "a")
    runner = os.fork()
    if runner == 0:
        # What a task's own code may say of itself.
        forged = {"x-airflow-dag-id": "forged", "baggage": "airflow.dag_id=forged,k=v"}
        said = json.dumps({"dag": dag, "task": task, "run": run, "got": call(task, url, forged)})
        os.write(output, said.encode() + b"\n")
        os._exit(0)
    os.waitpid(runner, 0)
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
