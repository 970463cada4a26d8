"""What an application does with PyPI's `spiffe`, printed as JSON for the test that asked.

workload.py x509 SOCKET                the X.509 context
workload.py rotation SOCKET            two contexts of a stream, the second after a rotation
workload.py jwt SOCKET AUDIENCE        a token, validated by the endpoint and by the library, and the bundles
workload.py token SOCKET AUDIENCE      a token
workload.py validate SOCKET AUDIENCE TOKEN  whose it is, by the endpoint and by the library
workload.py negatives SOCKET           what calls that are not as they should be are answered with
workload.py refused SOCKET             the code of a first call without an identity
"""

import json
import sys
import threading

import grpc
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc

SERVICE = "/SpiffeWorkloadAPI/"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"
HEADER = ("workload.spiffe.io", "true")


def describe(context):
    svid = context.default_svid
    roots = {str(bundle.trust_domain): len(bundle.x509_authorities) for bundle in context.x509_bundle_set.bundles}
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": format(svid.leaf.serial_number, "x"),
        "certificates": len(svid.cert_chain),
        "roots": roots,
    }


def x509(client):
    context = client.fetch_x509_context(timeout=10)
    bundles = client.fetch_x509_bundles(timeout=10)
    return describe(context) | {"bundles": [str(bundle.trust_domain) for bundle in bundles.bundles]}


def rotation(client):
    seen, done, errors = [], threading.Event(), []

    def update(context):
        seen.append(describe(context))
        if len(seen) == 2:
            done.set()

    stream = client.stream_x509_contexts(update, errors.append)
    done.wait(60)
    stream.cancel()
    return {"seen": seen, "errors": [str(error) for error in errors]}


def jwt(client, audience):
    token = client.fetch_jwt_svid(audience={audience}, timeout=10)
    again = client.fetch_jwt_svid(audience={audience}, timeout=10)
    validated = client.validate_jwt_svid(token.token, audience)
    bundles = client.fetch_jwt_bundles(timeout=10)
    own = bundles.get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    by_library = JwtSvid.parse_and_validate(token.token, own, {audience})
    try:
        client.validate_jwt_svid(token.token, "somebody-else")
        refused = None
    except Exception as error:
        refused = str(error)
    return {
        "spiffe_id": str(token.spiffe_id),
        "validated": str(validated.spiffe_id),
        "by_library": str(by_library.spiffe_id),
        "kept": token.token == again.token,
        "keys": len(own.jwt_authorities),
        "refused": refused,
    }


def token_for(client, audience):
    return {"token": client.fetch_jwt_svid(audience={audience}, timeout=10).token}


def validate(path, audience, token):
    stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(grpc.insecure_channel(f"unix://{path}"))
    request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
    try:
        answer = stub.ValidateJWTSVID(request, metadata=[HEADER], timeout=10)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}
    with WorkloadApiClient(f"unix://{path}") as client:
        bundles = client.fetch_jwt_bundles(timeout=10)
        domain = SpiffeId(answer.spiffe_id).trust_domain
        by_library = JwtSvid.parse_and_validate(token, bundles.get_bundle_for_trust_domain(domain), {audience})
    return {"spiffe_id": answer.spiffe_id, "by_library": str(by_library.spiffe_id)}


def code_of(call):
    """The code of a call's end, or what its first message is."""
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def negatives(path):
    channel = grpc.insecure_channel(f"unix://{path}")
    stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
    raw_stream = lambda method: channel.unary_stream(method, lambda _: b"", lambda answer: answer)
    raw_unary = lambda method: channel.unary_unary(method, lambda _: b"", lambda answer: answer)

    def fetch(*metadata):
        return code_of(lambda: next(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=metadata, timeout=10)))

    def token(audience, spiffe_id=""):
        request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        return code_of(lambda: stub.FetchJWTSVID(request, metadata=[HEADER], timeout=10))

    def validation(audience, svid):
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=svid)
        return code_of(lambda: stub.ValidateJWTSVID(request, metadata=[HEADER], timeout=10))

    delta = channel.stream_stream(SDS + "DeltaSecrets", lambda _: b"", lambda answer: answer)
    return {
        "as it should be": fetch(HEADER),
        "no header": fetch(),
        "True": fetch(("workload.spiffe.io", "True")),
        "header twice": fetch(HEADER, HEADER),
        "no audience": token([]),
        "empty audience": token([""]),
        "somebody else's ID": token(["a"], "spiffe://sidewind.local/ns/other/sa/other"),
        "no ID": token(["a"], "not an ID"),
        "validation for nobody": validation("", "a.b.c"),
        "validation of nothing": validation("a", ""),
        "validation of nonsense": validation("a", "a.b.c"),
        "WIT-SVID": code_of(lambda: next(raw_stream(SERVICE + "FetchWITSVID")(None, metadata=[HEADER], timeout=10))),
        "WIT bundles": code_of(lambda: next(raw_stream(SERVICE + "FetchWITBundles")(None, metadata=[HEADER], timeout=10))),
        "WIT-SVID without header": code_of(lambda: next(raw_stream(SERVICE + "FetchWITSVID")(None, timeout=10))),
        "unknown method": code_of(lambda: raw_unary(SERVICE + "Nonsense")(None, metadata=[HEADER], timeout=10)),
        "DeltaSecrets": code_of(lambda: next(delta(iter([None]), timeout=10))),
    }


def refused(path):
    channel = grpc.insecure_channel(f"unix://{path}")
    stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
    request = workload_pb2.X509SVIDRequest()
    try:
        next(stub.FetchX509SVID(request, metadata=[HEADER], timeout=10))
        return {"code": "OK"}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def main():
    command, path, *rest = sys.argv[1:]
    if command in ("negatives", "refused"):
        answer = {"negatives": negatives, "refused": refused}[command](path)
    elif command == "validate":
        answer = validate(path, *rest)
    else:
        with WorkloadApiClient(f"unix://{path}") as client:
            answer = {"x509": x509, "rotation": rotation, "jwt": jwt, "token": token_for}[command](client, *rest)
    print(json.dumps(answer))


main()
