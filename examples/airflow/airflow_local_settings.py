"""Tells the sidecar of a task's pod which task it is beside.

Airflow calls `pod_mutation_hook` for each pod that it makes: in the scheduler for KubernetesExecutor, and in the task's
own process for KubernetesPodOperator. Put this file on Airflow's PYTHONPATH, or its function into the file of that name
that you have.

The values are exact. Those of the labels are not: Kubernetes cuts them to 63 characters, and none may hold ":" or "+".
The map index alone comes from there for a KubernetesPodOperator: a number is a label as it is, and the environment has none.
"""

import os

# The sidecar's variables, and the annotations in which KubernetesExecutor says the same.
NAMES = {
    "AIRFLOW_CTX_DAG_ID": "dag_id",
    "AIRFLOW_CTX_TASK_ID": "task_id",
    "AIRFLOW_CTX_DAG_RUN_ID": "run_id",
    "AIRFLOW_CTX_TRY_NUMBER": "try_number",
    "AIRFLOW_CTX_MAP_INDEX": "map_index",
    "AIRFLOW_CTX_TASK_INSTANCE_ID": "task_instance_id",
}


def pod_mutation_hook(pod):
    from kubernetes.client import models as k8s

    annotations = pod.metadata.annotations or {}
    if "dag_id" in annotations:
        said = {name: annotations.get(annotation) for name, annotation in NAMES.items()}
    else:
        # The process of a KubernetesPodOperator's task has its names in its own environment.
        said = {name: os.environ.get(name) for name in NAMES}
        if said["AIRFLOW_CTX_DAG_ID"]:
            said["AIRFLOW_CTX_MAP_INDEX"] = (pod.metadata.labels or {}).get("map_index")
    for container in [*(pod.spec.init_containers or []), *pod.spec.containers]:
        if container.name != "sidewind-proxy":
            continue
        known = {variable.name for variable in container.env or []}
        for name, value in said.items():
            if value and name not in known:
                container.env = [*(container.env or []), k8s.V1EnvVar(name=name, value=str(value))]
