"""The hook of examples/airflow tells a pod's sidecar its task exactly, whoever makes the pod."""

import importlib.util
import os
import pathlib
import sys
import types
import unittest
import unittest.mock

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "airflow" / "airflow_local_settings.py"
RUN = "scheduled__2026-11-21T00:00:00+00:00"


def variable(name, value):
    return types.SimpleNamespace(name=name, value=value)


def container(name, **env):
    return types.SimpleNamespace(name=name, env=[variable(*pair) for pair in env.items()] or None)


def told(annotations, environment, *others, labels=None):
    """What the sidecar's environment says after the hook."""
    sidecar = container("sidewind-proxy", SIDEWIND_TASK_LOOKUP="environment")
    base = container("base")
    spec = types.SimpleNamespace(init_containers=[sidecar, *others], containers=[base])
    pod = types.SimpleNamespace(metadata=types.SimpleNamespace(annotations=annotations, labels=labels), spec=spec)
    models = types.SimpleNamespace(V1EnvVar=variable)
    client = types.SimpleNamespace(models=models)
    modules = {"kubernetes": types.SimpleNamespace(client=client), "kubernetes.client": client}
    loaded = importlib.util.spec_from_file_location("airflow_local_settings", EXAMPLE)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    with unittest.mock.patch.dict(sys.modules, modules):
        with unittest.mock.patch.dict(os.environ, environment, clear=True):
            module.pod_mutation_hook(pod)
    assert base.env is None, "the task's own container is left alone"
    return {one.name: one.value for one in sidecar.env if one.name.startswith("AIRFLOW_")}


class HookTests(unittest.TestCase):
    def test_annotations_of_the_executor_are_copied(self):
        annotations = {"dag_id": "payroll", "task_id": "load", "run_id": RUN, "try_number": "2"}
        expected = {
            "AIRFLOW_CTX_DAG_ID": "payroll",
            "AIRFLOW_CTX_TASK_ID": "load",
            "AIRFLOW_CTX_DAG_RUN_ID": RUN,
            "AIRFLOW_CTX_TRY_NUMBER": "2",
        }
        # What the executor itself runs in says nothing of the pod.
        self.assertEqual(told(annotations, {"AIRFLOW_CTX_DAG_ID": "another"}), expected)

    def test_a_pod_operators_task_names_itself(self):
        environment = {
            "AIRFLOW_CTX_DAG_ID": "payroll",
            "AIRFLOW_CTX_TASK_ID": "load",
            "AIRFLOW_CTX_DAG_RUN_ID": RUN,
            "AIRFLOW_CTX_DAG_OWNER": "airflow",
        }
        expected = {name: value for name, value in environment.items() if "OWNER" not in name}
        self.assertEqual(told(None, environment, container("git-sync")), expected)

    def test_a_mapped_pod_operators_map_index_is_that_of_its_label(self):
        environment = {
            "AIRFLOW_CTX_DAG_ID": "payroll",
            "AIRFLOW_CTX_TASK_ID": "load",
            "AIRFLOW_CTX_DAG_RUN_ID": RUN,
        }
        # As Airflow labels the pod: the run is cut, and the index is what it is.
        labels = {"dag_id": "payroll", "run_id": "scheduled__2026-11-21T0000000000-4f", "map_index": "0"}
        expected = {**environment, "AIRFLOW_CTX_MAP_INDEX": "0"}
        self.assertEqual(told({}, environment, labels=labels), expected)
        # An index in the environment is somebody else's: Airflow sets none.
        environment["AIRFLOW_CTX_MAP_INDEX"] = "7"
        self.assertEqual(told({}, environment, labels=labels), expected)
        # The executor's own pods have it as an annotation, and labels say nothing then.
        annotations = {"dag_id": "d", "task_id": "t", "run_id": RUN, "map_index": "3"}
        self.assertEqual(told(annotations, {}, labels=labels)["AIRFLOW_CTX_MAP_INDEX"], "3")

    def test_a_pod_of_no_task_is_told_nothing(self):
        self.assertEqual(told({}, {}), {})


if __name__ == "__main__":
    unittest.main()
