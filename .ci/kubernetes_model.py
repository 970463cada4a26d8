"""Holds manifests against Kubernetes' object model, so that a misspelt field is found without an API server."""

import re

from kubernetes import client


def hold_against_model(value, kind, where):
    """Every key of `value` must be a field of the Kubernetes type named `kind`."""
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        assert isinstance(value, list), f"{where} is not a list"
        for index, item in enumerate(value):
            hold_against_model(item, match[1], f"{where}[{index}]")
    elif match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        assert isinstance(value, dict), f"{where} is not a map"
        for key, item in value.items():
            hold_against_model(item, match[1], f"{where}.{key}")
    elif hasattr(client, kind):
        model = getattr(client, kind)
        fields = {json: (attribute, model.openapi_types[attribute]) for attribute, json in model.attribute_map.items()}
        assert isinstance(value, dict), f"{where} is not a map"
        for key, item in value.items():
            assert key in fields, f"{where}.{key}: {kind} has no such field"
            hold_against_model(item, fields[key][1], f"{where}.{key}")
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, f"{where} is {value!r}, and should be of type {kind}"
    else:
        # A number or a name, as in targetPort.
        assert kind == "object", f"{where}: unknown type {kind}"
