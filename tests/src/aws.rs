//! What a task in AWS finds around it, by `tests/workloads/aws.py`: STS that checks signatures, and ECS's endpoint of
//! credentials. And AWS Private CA, for a control plane.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use sidewind_api::evidence::STS_BODY;
use sidewind_api::v1;

use crate::http::Request;
use crate::lan::Host;
use crate::mesh::Mesh;
use crate::place::Place;
use crate::process::Process;
use crate::scratch::Scratch;

const SCRIPT: &str = include_str!("../workloads/aws.py");
const PCA_SCRIPT: &str = include_str!("../workloads/aws_pca.py");
/// Where AWS Private CA is.
const ADDRESS: &str = "127.0.0.1";
/// Where ECS gives credentials, in every task's own network.
const ECS: std::net::SocketAddr = std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 170, 2)),
    80,
);

/// AWS, as far as a task sees it.
#[derive(Debug)]
pub struct Aws {
    host: Host,
    ca_file: PathBuf,
    _process: Process,
}

impl Aws {
    /// Starts it in the one network of a mesh on loopback addresses.
    ///
    /// # Panics
    /// When moto cannot be installed or does not start.
    #[track_caller]
    pub fn start(mesh: &mut Mesh) -> Self {
        let python = python();
        let host = mesh.outsider("aws");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![host.address.to_string()]);
        let certificate = params
            .expect("a name")
            .self_signed(&key)
            .expect("a certificate");
        let ca_file = mesh.scratch.write("aws.pem", certificate.pem());
        let key = mesh
            .scratch
            .write_secret("aws.key", key.serialize_pem(), None);
        let script = mesh.scratch.write("aws.py", SCRIPT);
        let address = format!("{}/32", ECS.ip());
        let address = ["address", "add", &address, "dev", "lo"];
        host.place.program("ip").args(address).finish().success();
        let mut process = host
            .place
            .program(python)
            .arg("-u")
            .arg(script)
            .arg(host.address.to_string())
            .args([&ca_file, &key])
            .start("aws", &mesh.scratch);
        let place = host.place.clone();
        let sts = (host.address, 8443).into();
        // It imports a good part of AWS first.
        process.wait_until("moto answers", Duration::from_secs(90), || {
            place.is_open(sts)
        });
        Self {
            host,
            ca_file,
            _process: process,
        }
    }

    /// An `AttestorConfig`: us-east-1 is moto's STS, us-west-1 redirects to it, and us-west-2 answers in JSON.
    pub fn attestor_config(&self) -> String {
        let entry = |region: &str, port: u16| {
            let (address, ca_file) = (self.host.address, self.ca_file.display());
            format!(
                "    - {{ regions: [{region}], accounts: [\"123456789012\"], endpoint: \"https://{address}:{port}\", caFile: \"{ca_file}\" }}\n"
            )
        };
        let entries = [
            ("us-east-1", 8443),
            ("us-west-1", 8444),
            ("us-west-2", 8445),
        ];
        let entries: String = entries
            .iter()
            .map(|(region, port)| entry(region, *port))
            .collect();
        format!(
            "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: aws }}\nspec:\n  awsIam:\n{entries}"
        )
    }

    /// A signed request of a role, by the SDK's own signer.
    #[track_caller]
    pub fn sign(
        &self,
        role: &str,
        region: &str,
        challenge: &v1::ChallengeResponse,
        key_sha256: &str,
    ) -> v1::AwsIam {
        let v1::ChallengeResponse {
            nonce, server_id, ..
        } = challenge;
        let path = format!(
            "/sign?name={role}&region={region}&server_id={server_id}&nonce={nonce}&key={key_sha256}"
        );
        let signed = Request::get(ECS, &path).send(&self.host.place).json();
        let pairs: Vec<(String, String)> =
            serde_json::from_value(signed).expect("a list of headers");
        let headers = pairs
            .into_iter()
            .map(|(name, value)| v1::HttpHeader { name, value });
        v1::AwsIam {
            region: region.to_owned(),
            headers: headers.collect(),
            body: STS_BODY.into(),
        }
    }

    /// Deletes a role and makes another of its name.
    #[track_caller]
    pub fn make_again(&self, role: &str) {
        let path = format!("/again?name={role}");
        assert_eq!(Request::get(ECS, &path).send(&self.host.place).status, 200);
    }
}

/// AWS Private CA with an authority, by `tests/workloads/aws_pca.py`, on an address of this machine.
#[derive(Debug)]
pub struct PrivateCa {
    /// Where it answers.
    pub endpoint: String,
    /// Whom to believe there.
    pub ca_file: PathBuf,
    /// The authority.
    pub arn: String,
    /// The authority's certificate in PEM.
    pub root: String,
    /// Name and secret of the key of somebody who may have it sign.
    pub access_key: (String, String),
    process: Process,
}

impl PrivateCa {
    /// Starts it.
    ///
    /// # Panics
    /// When moto cannot be installed or does not start.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        let python = python();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![ADDRESS.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca_file = scratch.write("aws-pca.pem", certificate.pem());
        let key = scratch.write_secret("aws-pca.key", key.serialize_pem(), None);
        let script = scratch.write("aws_pca.py", PCA_SCRIPT);
        let program = Place::Host.program(python).arg("-u").arg(script);
        let program = program.arg(ADDRESS).args([&ca_file, &key]);
        let process = program.start("aws-pca", scratch);
        // It imports a good part of AWS first.
        let first = process.wait_for_log("\"port\"", Duration::from_secs(90));
        let first: serde_json::Value = serde_json::from_str(&first).expect("a line of JSON");
        let text = |name: &str| first[name].as_str().expect("a text").to_owned();
        Self {
            endpoint: format!("https://{ADDRESS}:{}", first["port"]),
            ca_file,
            arn: text("arn"),
            root: text("root"),
            access_key: (text("access_key"), text("secret")),
            process,
        }
    }

    /// Templates of the certificates that it has signed for whoever asked.
    pub fn signed(&self) -> Vec<String> {
        let output = self.process.output();
        let lines = output.lines().skip(1);
        let signed = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        signed
            .filter_map(|signed| Some(signed["template"].as_str()?.to_owned()))
            .collect()
    }

    /// Ends it.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// A Python with moto, which is installed when it is not there.
#[track_caller]
fn python() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = std::env::current_exe().expect("this program has a path");
    // target/debug/deps/e2e-0123
    let target = program.ancestors().nth(3).expect("cargo's directories");
    let installed = Command::new(root.join(".ci/moto"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .expect("a script of this repository");
    let said = String::from_utf8_lossy(&installed.stderr);
    assert!(
        installed.status.success(),
        "moto cannot be installed: {said}"
    );
    String::from_utf8_lossy(&installed.stdout).trim().to_owned()
}
