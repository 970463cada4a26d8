"""A worker with 16 tasks, 200 processes and 500 sockets.

worker.py PORT IDLE_PORT LOG_FOLDER: each task connects to PORT over and over, says its DAG in eight bytes, and waits for a byte.
Every fifth connection is of a program that the task has just started. Ends with its input.
"""

import os
import signal
import socket
import subprocess
import sys

TASKS, PROCESSES, SOCKETS = 16, 200, 500
PORT, IDLE_PORT, FOLDER = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
PROGRAM = 'exec 3<>/dev/tcp/127.0.0.1/$0; printf %s "$1" >&3; read -r -n 1 <&3'


def idle(count):
    return [socket.create_connection(("127.0.0.1", IDLE_PORT)) for _ in range(count)]


def run(dag):
    said = dag.ljust(8).encode()
    held = idle(10)
    n = 0
    while True:
        n += 1
        if n % 5 == 0:
            subprocess.run(["bash", "-c", PROGRAM, str(PORT), said.decode()], check=True)
            continue
        connection = socket.create_connection(("127.0.0.1", PORT))
        connection.sendall(said)
        connection.recv(1)
        connection.close()


def supervise(dag):
    path = f"{FOLDER}/dag_id={dag}/run_id=run/task_id=task/attempt=1.log"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = open(path, "a")
    if os.fork() == 0:
        run(dag)
    signal.pause()


os.setpgid(0, 0)
# As a pool's connections to its broker and database are, these are in every process that is forked later.
inherited = idle(10)
others = PROCESSES - 1 - 2 * TASKS
left = SOCKETS - 10 - 10 * TASKS
for n in range(others):
    if os.fork() == 0:
        held = idle(left // others + (n < left % others))
        signal.pause()
for n in range(TASKS):
    if os.fork() == 0:
        supervise(f"dag_{n}")
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
