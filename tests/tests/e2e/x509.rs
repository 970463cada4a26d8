//! Moving from another CA: a certificate that a workload has already brings it into the mesh.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};

fn documents(ca_file: &str) -> String {
    format!(
        r#"
apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: {{ name: old-ca }}
spec:
  x509: [{{ authority: old, caFile: "{ca_file}" }}]
---
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: {{ name: orders, namespace: data }}
spec:
  selectors: {{ x509: {{ authority: old, subjectCn: orders }} }}
  spiffeId: spiffe://sidewind.local/ns/data/sa/orders
"#
    )
}

#[test]
fn an_existing_certificate_brings_its_workload_into_the_mesh() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let roots = mesh.scratch.write("old.pem", ca.pem());
    let documents = documents(&roots.display().to_string());
    mesh.control_plane.write_config("old-ca.yaml", &documents);
    eventually("the control plane has the attestor", PATIENCE, || {
        mesh.control_plane
            .log()
            .contains(r#""attestors":1"#)
            .then_some(())
    });

    let issue = |name: &str, mesh: &Mesh| {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, name);
        let leaf = leaf.signed_by(&key, &ca).unwrap();
        let certificate = mesh.scratch.write(&format!("{name}.pem"), leaf.pem());
        let key_file = mesh
            .scratch
            .write_secret(&format!("{name}.key"), key.serialize_pem(), None);
        [certificate, key_file].map(|path| path.display().to_string())
    };
    let [certificate, key] = issue("orders", &mesh);
    let flags = ["--x509-cert-file", &certificate, "--x509-key-file", &key];
    let _orders = mesh.workload("data", "orders").attested_by(&flags).start();
    let listed = mesh.control_plane.workloads().to_string();
    assert!(
        listed.contains("spiffe://sidewind.local/ns/data/sa/orders"),
        "{listed}"
    );

    let [certificate, key] = issue("admin", &mesh);
    let flags = ["--x509-cert-file", &certificate, "--x509-key-file", &key];
    let admin = mesh.workload("data", "admin").attested_by(&flags);
    let admin = admin.without_waiting().start();
    eventually("the other is told its selectors", PATIENCE, || {
        admin
            .sidecar
            .log()
            .contains("x509:subject-cn=admin")
            .then_some(())
    });
}
