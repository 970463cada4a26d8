"""Asks for Airflow variables as a task's code does, by Airflow's own task and supervisor code.

variables.py URL DEFAULT KEY...: URL is the Execution API's. Prints a JSON object: for each variable what
`Variable.get(KEY, default=DEFAULT)` gives, or the name of what it raises.
"""

import json
import sys

import structlog
from airflow.sdk import Variable
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import VariableResult, _RequestFrame
from airflow.sdk.execution_time.supervisor import ActivitySubprocess


class Supervisor(ActivitySubprocess):
    """The supervisor of a task, without the process and the pipe to it."""

    def send_msg(self, msg, request_id, error=None, **_):
        self.answer = error or msg


class Comms:
    """What a task's code says to its supervisor, and is answered."""

    def __init__(self, url):
        self.supervisor = Supervisor.__new__(Supervisor)
        self.supervisor.client = Client(base_url=url, token="a-token")
        self.supervisor._subprocess_schema_version = None
        self.handler = self.supervisor.handle_requests(structlog.get_logger())
        next(self.handler)

    def send(self, msg):
        self.handler.send(_RequestFrame(id=1, body=msg.model_dump()))
        return self.supervisor.answer


def ask(key, default):
    try:
        return Variable.get(key, default=default)
    except Exception as error:
        return type(error).__name__


structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
url, default, *keys = sys.argv[1:]
task_runner.SUPERVISOR_COMMS = Comms(url)
print(json.dumps({key: ask(key, default) for key in keys}))
