//! A workload that is registered by a document, as nothing of a join token lets its Airflow tasks have identities.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::mesh::{Mesh, SIDECAR_UID};
use crate::wait::{PATIENCE, eventually};

/// What a registration says.
#[derive(Clone, Copy, Debug)]
pub struct Registered<'r> {
    /// The identity.
    pub spiffe_id: &'r str,
    /// Services that the workload may offer.
    pub services: &'r [&'r str],
    /// `taskIdentities`, as YAML.
    pub tasks: &'r str,
    /// The secret of the Airflow that `tasks` may name `production`.
    pub airflow_secret: &'r Path,
}

impl Registered<'_> {
    /// Makes a certificate of another authority worth the identity, and gives the flags by which a sidecar shows it.
    ///
    /// # Panics
    /// When the control plane does not take the documents.
    #[track_caller]
    pub fn flags(self, mesh: &Mesh) -> Vec<String> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let ca = CertifiedIssuer::self_signed(ca, key).expect("a certificate");
        let roots = mesh.scratch.write("old.pem", ca.pem());
        let Self {
            spiffe_id,
            services,
            tasks,
            airflow_secret,
        } = self;
        let documents = format!(
            "apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: {{ name: registered }}
spec:
  x509: [{{ authority: old, caFile: {roots:?} }}]
  airflow: [{{ name: production, secretFile: {airflow_secret:?} }}]
---
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: {{ name: registered, namespace: airflow }}
spec:
  selectors: {{ x509: {{ authority: old, subjectCn: registered }} }}
  spiffeId: {spiffe_id}
  services: {services:?}
  taskIdentities: {tasks}
  taskContext: true
"
        );
        mesh.control_plane
            .write_config("registered.yaml", &documents);
        eventually("the control plane has the registration", PATIENCE, || {
            let log = mesh.control_plane.log();
            log.contains(r#""registrations":1"#).then_some(())
        });
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name
            .push(DnType::CommonName, "registered");
        let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
        let certificate = mesh.scratch.write("registered.pem", leaf.pem());
        let key = key.serialize_pem();
        let key = (mesh.scratch).write_secret("registered.key", key, Some(SIDECAR_UID));
        let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
        vec![
            "--x509-cert-file".to_owned(),
            certificate,
            "--x509-key-file".to_owned(),
            key,
        ]
    }
}
