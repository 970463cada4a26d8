"""Says at the sidecar's Unix socket which task this process works for, and answers for its sockets.

The sidecar first says `{}`: from then on it knows the task. It sends `{"socket": INODE}`; the answer is `{"socket": INODE, "held": BOOL}`: whether this process or one below it
has that socket open. Sockets that were open before the task's code began are not the task's.

A sidecar may come later than the task, or be started again: it is looked for until the task has ended.
"""

import json
import os
import socket
import threading

# How long the task may be kept from beginning, at each of three steps.
CONNECT_SECONDS = 0.2

# How long the sidecar is waited for until it is looked for again: at first, and at most.
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5

# Processes below this one that are looked at for one question.
MAX_PROCESSES = 1000

_reporters = []


class Reporter:
    """One task of this process."""

    def __init__(self, path, task):
        self._path = path
        self._task = task
        self._connection = None
        self._ended = threading.Event()
        self._inherited = set()

    def start(self):
        """Tells of the task, and answers questions from then on."""
        self._inherited = set(_sockets("self"))
        self._begin()
        _reporters.append(self)

    def stop(self):
        """The task has ended."""
        if self in _reporters:
            _reporters.remove(self)
        self._ended.set()
        connection = self._connection
        if connection is not None:
            _close(connection)

    def _begin(self):
        # At once, so that the sidecar knows the task before its code begins.
        is_connected = self._connect()
        threading.Thread(target=self._stay, args=(is_connected,), name="sidewind", daemon=True).start()

    def _stay(self, is_connected):
        """Answers questions, and connects again whenever the sidecar is gone, until the task has ended."""
        wait = FIRST_WAIT_SECONDS
        while True:
            if is_connected and self._serve(self._connection):
                wait = FIRST_WAIT_SECONDS
            if self._ended.wait(wait):
                return
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            is_connected = self._connect()

    def _connect(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(self._path)
            connection.sendall(json.dumps(self._task).encode() + b"\n")
            _welcome(connection)
            connection.settimeout(None)
        except OSError:
            connection.close()
            return False
        self._connection = connection
        if self._ended.is_set():
            _close(connection)
        return True

    def _serve(self, connection):
        """Answers until the sidecar is gone, or is no sidecar. False where it has asked nothing."""
        has_asked = False
        try:
            with connection.makefile("rb") as questions:
                for line in questions:
                    question = json.loads(line)
                    if not question:
                        continue  # A welcome that came late.
                    inode = int(question["socket"])
                    answer = {"socket": inode, "held": self._holds(inode)}
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                    has_asked = True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        finally:
            _close(connection)
        return has_asked

    def _holds(self, inode):
        if inode in self._inherited:
            return False
        return any(inode in _sockets(pid) for pid in _family())

    def _forked(self):
        """This is a child of the task's process, which has no threads and must not use its connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        # A thread that is not here may have held the other one's lock.
        self._ended = threading.Event()
        self._begin()


def _welcome(connection):
    """Waits until the sidecar knows the task. One that is slow is not waited for."""
    try:
        while connection.recv(1) not in (b"\n", b""):
            pass
    except socket.timeout:
        pass


def _close(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def _sockets(pid):
    """Inode numbers of the sockets that a process has open; of one that may not be looked at, none."""
    folder = "/proc/%s/fd" % pid
    try:
        files = os.listdir(folder)
    except OSError:
        return
    for file in files:
        try:
            link = os.readlink(folder + "/" + file)
        except OSError:
            continue
        if link.startswith("socket:["):
            yield int(link[8:-1])


def _family():
    """This process, and those below it."""
    waiting = ["self"]
    for _ in range(MAX_PROCESSES):
        if not waiting:
            return
        pid = waiting.pop()
        yield pid
        waiting.extend(_children(pid))


def _children(pid):
    folder = "/proc/%s/task" % pid
    try:
        threads = os.listdir(folder)
    except OSError:
        return
    for thread in threads:
        try:
            with open("%s/%s/children" % (folder, thread)) as children:
                yield from children.read().split()
        except OSError:
            continue


def _after_fork():
    for reporter in _reporters:
        reporter._forked()


os.register_at_fork(after_in_child=_after_fork)
