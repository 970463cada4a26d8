#!/usr/bin/env python3
"""Checks what the examples and pages tell people to type: `examples-check.py BINARIES`, from the project's root.

Every variable must be one that the programs know, every command and flag one that `--help` lists, and each
container of the compose, ECS and Kubernetes examples is started with its settings, up to the point where they were all
accepted and a port that is taken ends it.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import helm_python as helm
import yaml
from kubernetes_model import hold_against_model

BINARIES = Path(sys.argv[1])
PROGRAMS = ("sidewind", "sidewind-proxy")
# What both programs answer a mistake in their settings with, before any port is bound.
USAGE = 64
# What ends a command in a shell.
OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1"}


@cache
def help_of(program, *commands):
    """The help of a command, or None where there is no such command."""
    asked = subprocess.run([BINARIES / program, *commands, "--help"], capture_output=True, text=True, timeout=30)
    return asked.stdout if asked.returncode == 0 else None


@cache
def variables(program):
    """Every variable of a program, from the help of all its commands."""
    found, waiting = set(), [()]
    while waiting:
        commands = waiting.pop()
        text = help_of(program, *commands)
        # Wrapped lines may break after `[env:`.
        found |= set(re.findall(r"\[env:\s+(SIDEWIND_[A-Z_]+)", text))
        listed = re.search(r"^Commands:\n((?:  .*\n|\n)+)", text, re.M)
        names = re.findall(r"^  ([a-z][a-z-]*)", listed[1], re.M) if listed else []
        waiting += [(*commands, name) for name in names if name != "help"]
    return found


def texts():
    """Every file of the examples, and the code blocks of every page, by name."""
    listed = subprocess.run(["git", "ls-files", "examples", "docs", "README.md"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        path = Path(name)
        if path.suffix in (".svg", ".png"):
            continue
        text = path.read_text()
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"^```(?:sh|bash|console|yaml|json)?\n(.*?)^```", text, re.M | re.S))
        elif path.suffix in (".yaml", ".json"):
            text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        yield name, text


def commands_in(text):
    """Each command line of one of the programs in a text: the program and its arguments."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line)
        if not re.search(r"sidewind(-proxy)?\s+[a-z]", line):
            continue
        # `$(…)` holds a command of its own.
        for part in re.split(r"\$\(|\)|`", line):
            try:
                words = shlex.split(part)
            except ValueError:
                words = part.split()
            for at, word in enumerate(words):
                if Path(word).name in PROGRAMS and re.fullmatch(r"[\w./${}-]*", word):
                    arguments = []
                    for argument in words[at + 1 :]:
                        if argument in OPERATORS or argument.startswith(">"):
                            break
                        arguments.append(argument.rstrip(";&"))
                    yield Path(word).name, arguments
                    break


def every_variable_is_known():
    known = set().union(*map(variables, PROGRAMS))
    assert {"SIDEWIND_STATE_DIR", "SIDEWIND_CAPTURE"} <= known, sorted(known)
    # What the tests of this project read.
    known |= {"SIDEWIND_BIN_DIR"}
    count = 0
    for name, text in texts():
        for variable in re.findall(r"\bSIDEWIND_[A-Z_]+", text):
            assert variable in known, f"{name}: no program reads {variable}"
            count += 1
    assert count > 10, count


def every_command_and_flag_is_known():
    count = 0
    for name, text in texts():
        for program, arguments in commands_in(text):
            path = []
            while arguments and re.fullmatch(r"[a-z][a-z-]*", arguments[0]) and help_of(program, *path, arguments[0]):
                path.append(arguments.pop(0))
            if not path and not (arguments and arguments[0].startswith("-")):
                # A sentence about the program, or an image of its name.
                continue
            listed = help_of(program, *path)
            count += 1
            # What stands behind -- is another program's.
            own = arguments[: arguments.index("--")] if "--" in arguments else arguments
            for argument in own:
                flag = re.match(r"--?[a-z][a-z-]*", argument)
                if flag and flag[0] not in ("--help", "--version"):
                    where = f"{name}: `{program} {' '.join(path)}` has no {flag[0]}"
                    assert re.search(rf"(^|[\s,]){re.escape(flag[0])}\b", listed, re.M), where
    assert count > 10, count


def started(program, settings, taken):
    """Starts a program with settings, and gives what it says when the taken port has ended it."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **settings}
    with tempfile.TemporaryDirectory() as state:
        if program == "sidewind":
            arguments = ["serve", "--state-dir", f"{state}/state", "--listen", taken]
        else:
            arguments = ["run", "--admin-listen", taken]
        begun = subprocess.Popen(
            [BINARIES / program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            said = begun.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            begun.kill()
            raise
    return begun.returncode, said


def accepts(where, program, settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        code, said = started(program, settings, taken)
    assert code not in (0, USAGE), f"{where}: {program} ended with {code}: {said}"
    assert "sets nothing" not in said, f"{where}: {said}"
    assert taken.rsplit(":")[1] in said, f"{where}: it ended for another reason than the taken port: {said}"


def program_of(image):
    """Which program an image runs, if one of ours."""
    name = image.rsplit("/", 1)[-1].split(":")[0]
    return next((program for program in reversed(PROGRAMS) if name.startswith(program)), None)


def the_compose_example_is_accepted():
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "compose"
        shutil.copytree("examples/compose", directory)
        check_compose(directory)


def check_compose(directory):
    services = yaml.safe_load((directory / "docker-compose.yaml").read_text())["services"]
    count = 0
    for name, service in services.items():
        program = program_of(service["image"])
        if not program:
            continue
        mounts = dict(reversed(volume.split(":")[:2]) for volume in service.get("volumes", []))
        settings = {}
        for variable, value in service["environment"].items():
            for inside, outside in mounts.items():
                if outside.startswith("./") and (value == inside or value.startswith(inside + "/")):
                    path = directory / outside / value[len(inside) :].lstrip("/")
                    # What ./enroll writes; a trust bundle is waited for.
                    if path.suffix == ".token":
                        path.write_text("stand-in\n")
                        path.chmod(0o600)
                    value = str(path)
            settings[variable] = value
        assert set(settings) <= variables(program), f"{name}: {set(settings) - variables(program)}"
        accepts(f"compose service {name}", program, settings)
        count += 1
    assert count == 3, count


def the_ecs_examples_are_accepted():
    count = 0
    for path in sorted(Path("examples/ecs").glob("*.json")):
        task = json.loads(path.read_text())
        for container in task["containerDefinitions"]:
            # The sidecar of a task of Airflow is its container's entry point.
            entry = container.get("entryPoint", [container["image"]])
            program = program_of(entry[0])
            if not program:
                continue
            assert entry[1:] in ([], ["run", "--"]), entry
            settings = {entry["name"]: entry["value"] for entry in container["environment"]}
            settings = {name: value for name, value in settings.items() if name.startswith("SIDEWIND_")}
            assert set(settings) <= variables(program), f"{set(settings) - variables(program)}"
            # ECS sets it, since the task has a role.
            settings["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/stand-in"
            accepts(f"{path}: container {container['name']}", program, settings)
            count += 1
    assert count == 3, count


AIRFLOW_CHART = Path("examples/airflow/chart")


def patched_airflow_chart():
    """What Airflow's chart renders and what `post-render` makes of it, by kind and name. Its jobs and PostgreSQL are as
    the values have them.
    """
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    rendered = Path("tests/airflow/chart-1.22.yaml").read_text()
    done = subprocess.run(
        [AIRFLOW_CHART / "post-render"],
        input=rendered,
        env={**os.environ, "PATH": tools},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        {(it["kind"], it["metadata"]["name"]): it["spec"] for it in yaml.safe_load_all(text)} for text in (rendered, done.stdout)
    )
    values = yaml.safe_load((AIRFLOW_CHART / "values.yaml").read_text())
    for kind, name, at, init in (
        ("Job", "airflow-run-airflow-migrations", values["migrateDatabaseJob"], "extraInitContainers"),
        ("Job", "airflow-create-user", values["createUserJob"], "extraInitContainers"),
        ("StatefulSet", "airflow-postgresql", values["postgresql"]["primary"], "initContainers"),
    ):
        pod = after[kind, name]["template"]["spec"]
        assert "initContainers" not in pod, f"{name}: what stands before them?"
        pod["initContainers"] = at[init]
        pod["volumes"] += at["extraVolumes"]
    return before, after


def pods_of(objects):
    """Their specifications by name, but for StatsD's, whose UDP the mesh does not carry."""
    pods = {name: it["template"]["spec"] for (kind, name), it in objects.items() if kind != "Service"}
    del pods["airflow-statsd"]
    return pods


def every_pod_of_airflows_chart_begins_with_its_sidecar():
    before, after = patched_airflow_chart()
    assert set(before) == set(after)
    statsd = ("Deployment", "airflow-statsd")
    assert before[statsd] == after[statsd]
    before, pods = pods_of(before), pods_of(after)
    for name, pod in pods.items():
        hold_against_model(pod, "V1PodSpec", name)
        own = before[name].get("initContainers", [])
        redirect, sidecar, *rest = pod["initContainers"]
        assert rest == own, f"{name}: {rest}"
        assert (redirect["name"], sidecar["name"]) == ("sidewind-redirect", "sidewind-proxy"), name
        assert sidecar["restartPolicy"] == "Always" and "startupProbe" in sidecar, name
        # `pod_mutation_hook` and the redirection know it by these.
        assert sidecar["securityContext"]["runAsUser"] == 1337, name
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in sidecar["volumeMounts"]} <= volumes, name
        assert {volume["name"] for volume in before[name].get("volumes", [])} <= volumes, name
        settings = {entry["name"]: entry["value"] for entry in sidecar["env"]}
        accepts(f"the sidecar of {name}", "sidewind-proxy", settings)
    looks = pods["airflow-worker"]["initContainers"][1]
    assert pods["airflow-worker"]["shareProcessNamespace"] is True
    assert looks["securityContext"]["capabilities"]["add"] == ["SYS_PTRACE", "DAC_READ_SEARCH"]
    # It would keep them from being used.
    assert "allowPrivilegeEscalation" not in looks["securityContext"]


def documents_of_the_control_planes_chart():
    """The files of its ConfigMap, with Airflow's documents as `docs/airflow.md` puts them there."""
    documents = {path.name: path.read_text() for path in (Path("examples/airflow/mesh.yaml"), AIRFLOW_CHART / "registrations.yaml")}
    values = {"kubernetesAttestor": {"enabled": True, "cluster": "prod"}, "policies": documents}
    with helm.Chart.load(Path("charts/sidewind")) as chart:
        files = chart.render(values, name="sidewind", namespace="sidewind")
    texts = (text for name, text in files.items() if name.endswith(".yaml"))
    rendered = (it for text in texts for it in yaml.safe_load_all(text) if it)
    return next(it["data"] for it in rendered if it["kind"] == "ConfigMap")


def every_component_of_airflows_chart_is_somebody_and_may_do_its_work():
    data = documents_of_the_control_planes_chart()
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in data.items():
            (Path(scratch) / name).write_text(text)
        checked = subprocess.run([BINARIES / "sidewind", "config", "check", scratch], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    documents = [it for text in data.values() for it in yaml.safe_load_all(text)]
    ids, serves = {}, {}
    for it in documents:
        if it["kind"] == "Registration":
            account = it["spec"]["selectors"]["kubernetes"]["serviceAccount"]
            ids[account] = it["spec"]["spiffeId"]
            serves[account] = it["spec"].get("services", [])
    policies = {it["metadata"]["name"]: it["spec"]["rules"] for it in documents if it["kind"] == "AuthorizationPolicy"}
    callers = {id for rule in policies["postgres"] for peer in rule["from"] for id in peer["spiffeIds"]}
    entries = {it["spec"]["hosts"][0]: it["spec"] for it in documents if it["kind"] == "ServiceEntry"}
    objects = patched_airflow_chart()[1]
    for name, entry in entries.items():
        assert objects["Service", name]["clusterIP"] == entry["addresses"][0], name
        assert objects["Service", name]["ports"][0]["port"] == entry["ports"][0]["port"], name
    served = set()
    for name, pod in pods_of(objects).items():
        account = pod["serviceAccountName"]
        settings = {entry["name"]: entry["value"] for entry in pod["initContainers"][1]["env"]}
        services = [it.split("=")[0] for it in settings.get("SIDEWIND_SERVE", "").split(",") if "=" in it]
        assert serves[account] == services, f"{name} serves {services}, and may serve {serves[account]}"
        served |= set(services)
        if name not in ("airflow-postgresql", "airflow-redis"):
            assert ids[account] in callers, f"{name} may not reach PostgreSQL"
    assert served == {it["service"] for it in entries.values()}, f"{served} are served, and others are found by their addresses"


def main():
    checks = (
        every_variable_is_known,
        every_command_and_flag_is_known,
        the_compose_example_is_accepted,
        the_ecs_examples_are_accepted,
        every_pod_of_airflows_chart_begins_with_its_sidecar,
        every_component_of_airflows_chart_is_somebody_and_may_do_its_work,
    )
    failed = 0
    for check in checks:
        try:
            check()
        except (AssertionError, subprocess.TimeoutExpired) as error:  # each check is reported, and the rest still run
            failed += 1
            print(f"FAILED {check.__name__}: {error}")
        else:
            print(f"    ok {check.__name__}")
    return 1 if failed else 0


sys.exit(main())
