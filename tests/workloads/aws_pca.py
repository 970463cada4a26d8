"""AWS Private CA by moto, with signatures and permissions checked: an authority, and a user who may have it sign.

aws_pca.py ADDRESS CERTIFICATE KEY serves https://ADDRESS on a port of its own until it is killed, and prints one line
of JSON: the port, the authority's ARN and root, and the user's access key. What is signed is printed as it is, a line
each.

moto keeps the authorities, checks who asks, and hands certificates out; what it signs is an end entity for a year
whatever is asked for. What AWS documents for the template SubordinateCACertificate_PathLen0 and for Validity is done
here in its stead.
"""

import base64
import datetime
import json
import os
import ssl
import sys

# Every request must be signed rightly and allowed, from the first on.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from moto.acmpca.models import CertificateAuthority, acmpca_backends
from moto.acmpca.responses import ACMPCAResponse
from moto.iam.models import iam_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
REGION = "eu-central-1"
SUBORDINATE = "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"
ACTIONS = ["IssueCertificate", "GetCertificate", "GetCertificateAuthorityCertificate"]


def sign(authority, csr, not_after):
    """A certificate as the template has it: nothing of the request but its name and key."""
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"],
        False,
    )
    hour = datetime.timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        # AWS begins an hour before it is asked.
        .not_valid_before(datetime.datetime.now(datetime.timezone.utc) - hour)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False)
    )
    signed = builder.sign(authority.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def issue(response):
    """Instead of moto's IssueCertificate."""
    asked = json.loads(response.body)
    authority = response.acmpca_backend.describe_certificate_authority(asked["CertificateAuthorityArn"])
    validity = asked["Validity"]
    assert validity["Type"] == "ABSOLUTE", validity
    not_after = datetime.datetime.fromtimestamp(validity["Value"], datetime.timezone.utc)
    if asked["TemplateArn"] != SUBORDINATE:
        raise ValueError(asked["TemplateArn"])
    csr = x509.load_pem_x509_csr(base64.b64decode(asked["Csr"]))
    assert csr.is_signature_valid
    arn = authority.issue_certificate(asked["Csr"].encode(), None)
    authority.issued_certificates[arn] = sign(authority, csr, not_after)
    print(json.dumps({"template": asked["TemplateArn"], "algorithm": asked["SigningAlgorithm"]}), flush=True)
    return json.dumps({"CertificateArn": arn})


def make_authority():
    """A root of ten years that is active."""
    backend = acmpca_backends[ACCOUNT][REGION]
    subject = {"Organization": "Example", "CommonName": "Example root"}
    configuration = {"KeyAlgorithm": "RSA_2048", "SigningAlgorithm": "SHA256WITHRSA", "Subject": subject}
    arn = backend.create_certificate_authority(configuration, None, "ROOT", None, [])
    authority = backend.certificate_authorities[arn]
    own = base64.b64encode(authority.csr)
    issued = authority.issue_certificate(own, "arn:aws:acm-pca:::template/RootCACertificate/V1")
    root, _ = authority.get_certificate(issued)
    authority.import_certificate_authority_certificate(root, None)
    return arn, root.decode()


def make_user(arn):
    """Somebody who may do with that authority what the control plane's documentation asks for, and nothing else."""
    backend = iam_backends[ACCOUNT]["aws"]
    backend.create_user(REGION, "control-plane")
    statement = {"Effect": "Allow", "Action": [f"acm-pca:{action}" for action in ACTIONS], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    backend.put_user_policy("control-plane", "authority", policy)
    key = backend.create_access_key("control-plane")
    return key.access_key_id, key.secret_access_key


address, certificate, key = sys.argv[1:4]
ACMPCAResponse.issue_certificate = issue
arn, root = make_authority()
access_key, secret = make_user(arn)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
application = DomainDispatcherApplication(create_backend_app)
server = make_server(address, 0, application, threaded=True, ssl_context=context)
first = {"port": server.server_port, "arn": arn, "root": root, "access_key": access_key, "secret": secret}
print(json.dumps(first), flush=True)
server.serve_forever()
