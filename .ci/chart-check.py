#!/usr/bin/env python3
"""Checks the chart: `chart-check.py CHART`. Each check is a function whose name is a sentence.

Charts are rendered by Helm's own engine, and every manifest is held against Kubernetes' object
model, so that a misspelt field fails here and not at the API server.
"""

import re
import sys
from pathlib import Path

import helm_python as helm
import yaml
from kubernetes import client
from kubernetes_model import hold_against_model

CHART = Path(sys.argv[1])
SHARED = {"replicas": 3, "store": {"existingSecret": "sidewind-store", "sealKeys": True}}
VARIANTS = ({"persistence": {"enabled": False}}, {"persistence": {"existingClaim": "mine"}}, SHARED)
POLICY = "apiVersion: sidewind.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec: {}\n"
KINDS = {
    "StatefulSet": client.V1StatefulSet,
    "Deployment": client.V1Deployment,
    "Service": client.V1Service,
    "ServiceAccount": client.V1ServiceAccount,
    "ConfigMap": client.V1ConfigMap,
    "PodDisruptionBudget": client.V1PodDisruptionBudget,
    "NetworkPolicy": client.V1NetworkPolicy,
    "ClusterRole": client.V1ClusterRole,
    "ClusterRoleBinding": client.V1ClusterRoleBinding,
}
# Every optional part on, every list filled.
EVERYTHING = {
    "fullnameOverride": "mesh",
    "image": {"repository": "registry.example.org/sidewind", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": ["pull"],
    "trustDomain": "example.org",
    "inboundPlaintext": "strict",
    "kubernetesAttestor": {"enabled": True, "cluster": "prod", "audience": "mesh"},
    "policies": {"a.yaml": POLICY, "b.yaml": POLICY + "---\n" + POLICY},
    "persistence": {"storageClassName": "encrypted", "size": "2Gi"},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "port": 443},
    "serviceAccount": {"annotations": {"a": "b"}},
    "extraEnv": [{"name": "SIDEWIND_LOG_FORMAT", "value": "text"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "data"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "system-cluster-critical",
    "podDisruptionBudget": {"enabled": True},
    "federation": {
        "spiffe": {"enabled": True},
        "web": {"enabled": True, "port": 443, "tlsSecret": "bundle-tls"},
        "egressPorts": [8443],
    },
    "networkPolicy": {
        "enabled": True,
        "proxies": [{"namespaceSelector": {}}],
        "metrics": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    },
}


def render(values=None, name="sidewind", namespace="sidewind-system"):
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        files = chart.render(values or {}, name=name, namespace=namespace)
    objects = {}
    for path, text in files.items():
        if not path.endswith(".yaml"):
            continue
        for document in yaml.safe_load_all(text):
            if document:
                objects[document["kind"]] = document
    return objects, files


def workload(objects):
    return objects.get("StatefulSet") or objects["Deployment"]


def container(objects):
    return workload(objects)["spec"]["template"]["spec"]["containers"][0]


def environment(objects):
    return {entry["name"]: entry.get("value") for entry in container(objects)["env"]}


def helm_lint_finds_nothing():
    for values in ({}, EVERYTHING):
        report = helm.lint(CHART, values, strict=True)
        findings = [m for m in report["messages"] if m["severity"] > 1]
        assert not findings and not report["errors"], report


def every_manifest_holds_against_the_kubernetes_model():
    for values in ({}, EVERYTHING, *VARIANTS):
        for kind, document in render(values)[0].items():
            hold_against_model(document, KINDS[kind].__name__, kind)


def defaults_make_the_least_that_works():
    objects, _ = render()
    assert set(objects) == {"StatefulSet", "Service", "ServiceAccount"}, set(objects)
    assert objects["StatefulSet"]["spec"]["replicas"] == 1
    assert container(objects)["args"] == ["serve"]
    assert container(objects)["image"] == "sidewind:0.1.0"
    assert [p["port"] for p in objects["Service"]["spec"]["ports"]] == [15010, 15014]


def everything_on_makes_every_kind():
    objects, _ = render(EVERYTHING)
    assert set(objects) == set(KINDS) - {"Deployment"}, set(objects)
    assert container(objects)["args"] == ["serve", "--config=/etc/sidewind/config"]
    assert container(objects)["image"] == "registry.example.org/sidewind@sha256:" + "0" * 64
    assert objects["StatefulSet"]["metadata"]["name"] == "mesh"


def values_reach_the_process():
    objects, _ = render(EVERYTHING)
    env = environment(objects)
    assert env["SIDEWIND_TRUST_DOMAIN"] == "example.org"
    assert env["SIDEWIND_INBOUND_PLAINTEXT"] == "strict"
    assert env["SIDEWIND_LOG_FORMAT"] == "text"
    for name in env:
        assert re.fullmatch(r"SIDEWIND_[A-Z_]+", name), name


def the_kubernetes_attestor_gets_what_it_needs_and_no_more():
    objects, _ = render(EVERYTHING)
    rules = {(rule["resources"][0], tuple(rule["verbs"])) for rule in objects["ClusterRole"]["rules"]}
    assert rules == {("tokenreviews", ("create",)), ("pods", ("get",))}, rules
    subject = objects["ClusterRoleBinding"]["subjects"][0]
    account = objects["StatefulSet"]["spec"]["template"]["spec"]["serviceAccountName"]
    assert (subject["name"], subject["namespace"]) == (account, "sidewind-system")
    entry = yaml.safe_load(objects["ConfigMap"]["data"]["sidewind-attestors.yaml"])["spec"]["kubernetes"][0]
    assert entry == {"cluster": "prod", "inCluster": True, "audience": "mesh", "defaultIdentities": True}
    ports = [port["port"] for port in objects["NetworkPolicy"]["spec"]["egress"][0]["ports"]]
    assert ports == [443, 6443]
    assert render({"networkPolicy": {"enabled": True}})[0]["NetworkPolicy"]["spec"]["egress"] == []


def bundle_endpoints_are_served_where_that_is_asked_for_and_nowhere_else():
    assert not [name for name in environment(render()[0]) if "FEDERATION" in name]
    objects, _ = render(EVERYTHING)
    served = environment(objects)
    assert served["SIDEWIND_FEDERATION_SPIFFE_LISTEN"] == "0.0.0.0:15443"
    assert served["SIDEWIND_FEDERATION_WEB_LISTEN"] == "0.0.0.0:15444"
    ports = {port["name"]: port["port"] for port in objects["Service"]["spec"]["ports"]}
    assert (ports["bundle-spiffe"], ports["bundle-web"]) == (15443, 443)
    egress = objects["NetworkPolicy"]["spec"]["egress"]
    assert {"port": 8443, "protocol": "TCP"} in egress[1]["ports"]


def policies_arrive_byte_for_byte():
    data = render(EVERYTHING)[0]["ConfigMap"]["data"]
    assert data["a.yaml"] == POLICY
    assert list(yaml.safe_load_all(data["b.yaml"]))[1]["kind"] == "AuthorizationPolicy"


def the_pod_meets_the_restricted_pod_security_standard():
    for values in ({}, EVERYTHING, SHARED):
        objects, _ = render(values)
        pod = workload(objects)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["automountServiceAccountToken"] is False
        assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
        own = container(objects)["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"]["drop"] == ["ALL"]


def what_is_mounted_is_declared():
    for values in ({}, EVERYTHING, *VARIANTS):
        spec = workload(render(values)[0])["spec"]
        mounts = sorted(mount["name"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"])
        volumes = [volume["name"] for volume in spec["template"]["spec"]["volumes"]]
        claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
        assert mounts == sorted(volumes + claims), (mounts, volumes, claims)


def replicas_share_a_database_from_a_secret():
    objects, _ = render(SHARED)
    assert "StatefulSet" not in objects
    spec = objects["Deployment"]["spec"]
    assert spec["replicas"] == 3
    env = environment(objects)
    assert env["SIDEWIND_STORE_FILE"] == "/etc/sidewind/store/url"
    assert env["SIDEWIND_STORE_KEY_FILE"] == "/etc/sidewind/store/key"
    (secret,) = (volume["secret"] for volume in spec["template"]["spec"]["volumes"] if "secret" in volume)
    assert secret == {"secretName": "sidewind-store", "defaultMode": 0o440}


def selectors_choose_the_pod():
    objects, _ = render(EVERYTHING)
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        objects["StatefulSet"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items(), selector
    assert labels["team"] == "data"


def ports_are_named_where_they_are_used():
    objects, _ = render(EVERYTHING)
    named = {port["name"] for port in container(objects)["ports"]}
    used = {port["targetPort"] for port in objects["Service"]["spec"]["ports"]}
    used |= {rule["port"] for entry in objects["NetworkPolicy"]["spec"]["ingress"] for rule in entry["ports"]}
    used |= {container(objects)[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")}
    assert used <= named, used - named


def names_fit_however_long_the_release_name():
    objects, _ = render(name="r" * 53)
    for document in objects.values():
        assert len(document["metadata"]["name"]) <= 52, document["metadata"]["name"]


def notes_say_what_is_lost_without_persistence():
    notes = render({"persistence": {"enabled": False}})[1]["sidewind/templates/NOTES.txt"]
    assert "WARNING: persistence is off" in notes
    assert "WARNING" not in render()[1]["sidewind/templates/NOTES.txt"]


def impossible_values_are_refused_by_name():
    for values, names in (
        ({"trustDomian": "example.org"}, "trustDomian"),
        ({"trustDomain": "Example.org"}, "trustDomain"),
        ({"inboundPlaintext": "maybe"}, "inboundPlaintext"),
        ({"svidTtl": "soon"}, "svidTtl"),
        ({"policies": {"orders": POLICY}}, "orders"),
        ({"service": {"port": 70000}}, "port"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"persistence": {"size": 1}}, "size"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 2}, "store.existingSecret"),
    ):
        try:
            render(values)
        except helm.HelmError as error:
            assert names in str(error), f"{values}: {error}"
        else:
            raise AssertionError(f"{values} was accepted")


def values_and_schema_name_the_same_things():
    with helm.Chart.load(CHART) as chart:
        values, schema = chart.values, chart.schema

    def walk(values, schema, path):
        properties = schema.get("properties", {})
        missing = set(properties) - set(values) - {"global", "requests", "limits", "claims"}
        assert not missing, f"{path}: in the schema and not in values.yaml: {missing}"
        for key, value in values.items():
            assert key in properties, f"{path}.{key} is not in the schema"
            if isinstance(value, dict) and properties[key].get("properties"):
                walk(value, properties[key], f"{path}.{key}")

    walk(values, schema, "values")


def main():
    checks = [check for name, check in globals().items() if callable(check) and getattr(check, "__module__", "") == "__main__"]
    helpers = {main, render, workload, container, environment}
    failed = 0
    for check in checks:
        if check in helpers:
            continue
        try:
            check()
        except Exception as error:  # each check is reported, and the rest still run
            failed += 1
            print(f"FAILED {check.__name__}: {type(error).__name__}: {error}")
        else:
            print(f"    ok {check.__name__}")
    return 1 if failed else 0


sys.exit(main())
