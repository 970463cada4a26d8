"""What a task in AWS finds around it: STS by moto with signatures checked, and the credentials endpoint of ECS.

aws.py ADDRESS CERTIFICATE KEY serves, until it is killed:
  https://ADDRESS:8443       moto
  https://ADDRESS:8444       a redirect to it
  https://ADDRESS:8445       what STS says, as JSON
  http://169.254.170.2:80    /v2/credentials/NAME: credentials of role NAME
                             /sign?name=&region=&server_id=&nonce=&key=: a request to STS, signed by botocore
                             /again?name=: role NAME is deleted and made again

NAME is a role of account 123456789012, or `elsewhere`, a role of another, or `forged`, whose key is a wrong one.
"""

import json
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

# Every request must be signed rightly, from the first on.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.iam.models import iam_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from moto.sts.models import sts_backends
from werkzeug.serving import run_simple

BODY = "Action=GetCallerIdentity&Version=2011-06-15"
lock = threading.Lock()
sessions = 0


def account_of(name):
    return "999999999999" if name == "elsewhere" else "123456789012"


def role(name):
    """The role's ARN; it is made when it is first asked for."""
    account = account_of(name)
    backend = iam_backends[account]["aws"]
    arn = f"arn:aws:iam::{account}:role/{name}"
    try:
        return backend.get_role_by_arn(arn).arn
    except Exception:
        return backend.create_role(name, "{}", "/", None, "", [], None).arn


def assume(name):
    """Credentials of a new session."""
    global sessions
    with lock:
        sessions += 1
        backend = sts_backends[account_of(name)]["aws"]
        session = backend.assume_role("us-east-1", f"task-{sessions}", role(name), "", 3600, None)
    secret = "wrong" if name == "forged" else session.secret_access_key
    return {
        "RoleArn": session.role_arn,
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": secret,
        "Token": session.session_token,
        "Expiration": session.expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def sign(name, region, server_id, nonce, key):
    """The headers of a signed request, as a list of pairs."""
    given = assume(name)
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-sidewind-server-id": server_id,
        "x-sidewind-nonce": nonce,
        "x-sidewind-key": key,
    }
    url = f"https://sts.{region}.amazonaws.com/"
    request = AWSRequest(method="POST", url=url, headers=headers, data=BODY)
    credentials = Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["Token"])
    SigV4Auth(credentials, "sts", region).add_auth(request)
    return list(request.headers.items())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Endpoint(Handler):
    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith("/v2/credentials/"):
            found = assume(url.path.rsplit("/", 1)[1])
        elif url.path == "/sign":
            found = sign(**query)
        elif url.path == "/again":
            with lock:
                backend = iam_backends[account_of(query["name"])]["aws"]
                backend.delete_role(query["name"])
                found = role(query["name"])
        else:
            self.answer(404, b"", {})
            return
        self.answer(200, json.dumps(found).encode(), {"content-type": "application/json"})


class Redirect(Handler):
    def do_POST(self):
        self.answer(307, b"", {"location": f"https://{address}:8443/", "content-type": "text/xml"})


class Json(Handler):
    def do_POST(self):
        key = self.headers["authorization"].split("Credential=")[1].split("/")[0]
        session = sts_backends["123456789012"]["aws"].get_assumed_role_from_access_key(key)
        result = {"Arn": session.arn, "UserId": session.user_id, "Account": session.account_id}
        body = {"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}}
        self.answer(200, json.dumps(body).encode(), {"content-type": "application/json"})


def serve(where, handler, tls=None):
    server = ThreadingHTTPServer(where, handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


address, certificate, key = sys.argv[1:4]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
serve((address, 8444), Redirect, context)
serve((address, 8445), Json, context)
serve(("169.254.170.2", 80), Endpoint)
application = DomainDispatcherApplication(create_backend_app)
run_simple(address, 8443, application, threaded=True, ssl_context=context)
