"""Airflow's listener hooks (2.7 to 3.3), which run in the process that runs a task's code.

Nothing here ever raises into a task or delays it by more than a fraction of a second.
"""

import logging
import os

import pluggy

from sidewind_airflow.reporter import Reporter

# The project name under which Airflow registers its hooks; `airflow.listeners.hookimpl` is the same.
hookimpl = pluggy.HookimplMarker("airflow")

DEFAULT_SOCKET = "/run/sidewind/task.sock"

_log = logging.getLogger(__name__)
_reporter = None


@hookimpl
def on_task_instance_running(previous_state, task_instance):
    """Just before the task's own code begins."""
    global _reporter
    try:
        _stop()
        path = os.environ.get("SIDEWIND_TASK_SOCKET")
        if path is None:
            path = DEFAULT_SOCKET
            if not os.path.isdir(os.path.dirname(path)):
                return  # Nobody has made a place for a sidecar's socket.
        reporter = Reporter(path, _task(task_instance))
        reporter.start()
        _reporter = reporter
    except Exception:
        _log.debug("the sidecar was not told of the task", exc_info=True)


@hookimpl
def on_task_instance_success(previous_state, task_instance):
    """The task's code has ended."""
    _stop()


@hookimpl
def on_task_instance_failed(previous_state, task_instance):
    """The task's code has ended."""
    _stop()


def _stop():
    global _reporter
    reporter, _reporter = _reporter, None
    if reporter is not None:
        reporter.stop()


def _task(ti):
    map_index = getattr(ti, "map_index", None)
    ti_id = getattr(ti, "id", None)
    return {
        "dag_id": ti.dag_id,
        "task_id": ti.task_id,
        "run_id": ti.run_id,
        # -1 stands for none.
        "map_index": map_index if isinstance(map_index, int) and map_index >= 0 else None,
        "try_number": ti.try_number,
        "ti_id": None if ti_id is None else str(ti_id),
    }
