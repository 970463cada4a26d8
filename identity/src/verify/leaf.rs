//! What a leaf must look like by itself, whoever signed it (X509-SVID sections 2, 3.1, 4 and 5.2).

use std::time::SystemTime;

use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey;

use super::VerifyError;
use crate::spiffe_id::SpiffeId;
use crate::x509::{self, MalformedCertificate, UriName};

/// What a leaf says. By itself this proves nothing: see [`super::verify_chain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The one SPIFFE ID.
    pub(crate) id: SpiffeId,
    /// From when on it is valid.
    pub(crate) not_before: SystemTime,
    /// Until when, inclusive, it is valid.
    pub(crate) not_after: SystemTime,
    /// The serial number in lower-case hexadecimal.
    pub(crate) serial_hex: String,
}

/// Parses a leaf and checks everything about it that needs no issuer.
pub(crate) fn parse_leaf(der: &[u8]) -> Result<Leaf, VerifyError> {
    check_leaf(&x509::parse(der)?)
}

pub(crate) fn check_leaf(certificate: &X509Certificate<'_>) -> Result<Leaf, VerifyError> {
    check_key_type(certificate)?;
    let id = the_one_id(certificate)?;
    check_extensions(certificate)?;
    Ok(Leaf {
        id,
        not_before: x509::system_time(certificate.validity().not_before),
        not_after: x509::system_time(certificate.validity().not_after),
        serial_hex: x509::serial_hex(certificate.raw_serial()),
    })
}

fn the_one_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let id = match x509::uri_names(certificate)?.as_slice() {
        [] => return Err(VerifyError::NoId),
        [UriName::Text(uri)] => SpiffeId::parse(uri)?,
        [UriName::NotUtf8] => return Err(VerifyError::IdNotText),
        many => return Err(VerifyError::ManyIds(many.len())),
    };
    if id.is_workload() {
        Ok(id)
    } else {
        Err(VerifyError::NoPath)
    }
}

fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    certificate
        .basic_constraints()
        .map_err(|_| MalformedCertificate::Extension("basic constraints"))?
        .filter(|constraints| !constraints.value.ca)
        .ok_or(VerifyError::LeafIsCa)?;
    certificate
        .key_usage()
        .map_err(|_| MalformedCertificate::Extension("key usage"))?
        .filter(|usage| usage.critical)
        .map(|usage| usage.value)
        .filter(|usage| usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign())
        .ok_or(VerifyError::KeyUsage)?;
    let purposes = certificate
        .extended_key_usage()
        .map_err(|_| MalformedCertificate::Extension("extended key usage"))?;
    if purposes.is_some_and(|purposes| !(purposes.value.server_auth && purposes.value.client_auth))
    {
        return Err(VerifyError::ExtendedKeyUsage);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| MalformedCertificate::Extension("subject alternative name"))?;
    let subject_is_empty = certificate.subject().iter_rdn().next().is_none();
    if subject_is_empty && names.is_some_and(|names| !names.critical) {
        return Err(VerifyError::NameNotCritical);
    }
    Ok(())
}

/// Refuses keys whose signatures cost too much to check, or that no peer of a mesh has reason to use.
fn check_key_type(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let key = certificate.public_key();
    let algorithm = &key.algorithm;
    let accepted = if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm
            .parameters
            .as_ref()
            .and_then(|any| any.as_oid().ok());
        curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
    } else if algorithm.algorithm == OID_SIG_ED25519 {
        true
    } else {
        match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => (2048..=4096).contains(&rsa.key_size()),
            _ => false,
        }
    };
    if accepted {
        Ok(())
    } else {
        Err(VerifyError::KeyType)
    }
}
