"""The listener against a sidecar that is played by the test: `python3 -m unittest discover airflow-plugin/tests`."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import types
import unittest
import unittest.mock

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

try:
    import pluggy  # noqa: F401
except ImportError:
    # What the listener uses of it; with Airflow it is there.
    class Marker:
        def __init__(self, project):
            self.project = project

        def __call__(self, function):
            return function

    sys.modules["pluggy"] = types.SimpleNamespace(HookimplMarker=Marker)

from sidewind_airflow import listener  # noqa: E402


class Task:
    dag_id, task_id, run_id, map_index, try_number, id = "payroll", "load", "manual__1", -1, 2, "0193"


def expect_socket_in(folder):
    path = os.path.join(folder, "task.sock")
    os.environ["SIDEWIND_TASK_SOCKET"] = path
    return path


class Sidecar:
    def __init__(self, folder):
        self.path = expect_socket_in(folder)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.listener.settimeout(60)

    def accept(self):
        connection, _ = self.listener.accept()
        connection.settimeout(20)
        lines = connection.makefile("rwb")
        return lines, json.loads(lines.readline())

    def close(self):
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


def ask(lines, inode):
    lines.write(json.dumps({"socket": inode}).encode() + b"\n")
    lines.flush()
    answer = json.loads(lines.readline())
    assert answer["socket"] == inode
    return answer["held"]


def inode(connection):
    return int(os.readlink("/proc/self/fd/%d" % connection.fileno())[8:-1])


def seekers():
    return [thread for thread in threading.enumerate() if thread.name == "sidewind"]


class ListenerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.sidecar = Sidecar(self.folder.name)
        self.addCleanup(lambda: self.sidecar.close())
        self.addCleanup(self.end)

    def end(self):
        """Threads of one test are not another's."""
        listener.on_task_instance_success("running", Task())
        for seeker in seekers():
            seeker.join(60)

    def begin(self):
        listener.on_task_instance_running("queued", Task())
        return self.sidecar.accept()

    def test_a_task_begins_when_the_sidecar_knows_it(self):
        known = threading.Event()

        def welcome():
            self.lines, _ = self.sidecar.accept()
            known.set()
            self.lines.write(b"{}\n")
            self.lines.flush()

        sidecar = threading.Thread(target=welcome)
        sidecar.start()
        with unittest.mock.patch("sidewind_airflow.reporter.CONNECT_SECONDS", 20):
            listener.on_task_instance_running("queued", Task())
        self.assertTrue(known.is_set())
        sidecar.join()

    def test_a_task_says_which_it_is(self):
        _, hello = self.begin()
        expected = {
            "dag_id": "payroll", "task_id": "load", "run_id": "manual__1",
            "map_index": None, "try_number": 2, "ti_id": "0193",
        }
        self.assertEqual(hello, expected)

    def test_it_answers_for_its_own_sockets_and_not_for_those_that_it_has_inherited(self):
        inherited, _other = socket.socketpair()
        lines, _ = self.begin()
        own, _far = socket.socketpair()
        self.assertTrue(ask(lines, inode(own)))
        self.assertFalse(ask(lines, inode(inherited)))
        self.assertFalse(ask(lines, 4294967295))

    def test_it_answers_for_the_programs_that_it_has_started(self):
        lines, _ = self.begin()
        own, far = socket.socketpair()
        number = inode(own)
        program = subprocess.Popen(
            ["bash", "-c", "cat; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[own.fileno()]
        )
        own.close()
        self.assertTrue(ask(lines, number))
        program.stdin.close()
        program.wait()
        program.stdout.close()
        self.assertFalse(ask(lines, number))
        far.close()

    def test_a_forked_child_speaks_for_itself(self):
        self.begin()
        waits, ends = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(waits, 1)
            os._exit(0)
        _, hello = self.sidecar.accept()
        self.assertEqual(hello["dag_id"], "payroll")
        os.write(ends, b".")
        os.waitpid(pid, 0)

    def test_the_end_of_a_task_ends_its_connection(self):
        lines, _ = self.begin()
        listener.on_task_instance_failed("running", Task())
        self.assertEqual(lines.readline(), b"")

    def test_a_sidecar_that_is_started_again_is_told_of_the_task_again(self):
        inherited, _other = socket.socketpair()
        lines, hello = self.begin()
        self.sidecar.close()
        lines.close()
        self.sidecar = Sidecar(self.folder.name)
        lines, again = self.sidecar.accept()
        self.assertEqual(again, hello)
        lines.write(b"{}\n")
        own, _far = socket.socketpair()
        self.assertTrue(ask(lines, inode(own)))
        self.assertFalse(ask(lines, inode(inherited)))

    def test_a_task_that_begins_before_its_sidecar_is_told_of_when_that_comes_and_so_are_its_children(self):
        self.sidecar.close()
        listener.on_task_instance_running("queued", Task())
        waits, ends = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(waits, 1)
            os._exit(0)
        self.sidecar = Sidecar(self.folder.name)
        for _ in range(2):
            lines, hello = self.sidecar.accept()
            self.assertEqual(hello["dag_id"], "payroll")
        os.write(ends, b".")
        os.waitpid(pid, 0)

    def test_no_sidecar_is_looked_for_after_the_end_of_a_task_nor_where_none_is_expected(self):
        self.sidecar.close()
        listener.on_task_instance_running("queued", Task())
        [seeker] = seekers()
        listener.on_task_instance_success("running", Task())
        seeker.join(60)
        self.assertFalse(seeker.is_alive())
        del os.environ["SIDEWIND_TASK_SOCKET"]
        with unittest.mock.patch("sidewind_airflow.listener.DEFAULT_SOCKET", self.folder.name + "/not/task.sock"):
            listener.on_task_instance_running("queued", Task())
        self.assertEqual(seekers(), [])
        with unittest.mock.patch("sidewind_airflow.listener.DEFAULT_SOCKET", self.folder.name + "/task.sock"):
            listener.on_task_instance_running("queued", Task())
        self.assertEqual(len(seekers()), 1)

    def test_a_sidecar_that_is_away_or_says_nonsense_harms_no_task(self):
        os.environ["SIDEWIND_TASK_SOCKET"] = self.sidecar.path + ".not"
        listener.on_task_instance_running("queued", Task())
        os.environ["SIDEWIND_TASK_SOCKET"] = self.sidecar.path
        lines, _ = self.begin()
        lines.write(b"nonsense\n")
        lines.flush()
        self.assertEqual(lines.readline(), b"")


if __name__ == "__main__":
    unittest.main()
