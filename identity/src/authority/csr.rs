//! Reading certificate signing requests (PKCS #10, RFC 2986) from clients that may be hostile.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

use super::SignError;
use crate::spiffe_id::SpiffeId;
use crate::x509::{UriName, uri_name};

/// The largest signing request that is parsed. One for a P-256 key with a SPIFFE ID takes under 3 KiB.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// The public key of a request, checked: P-256, and its sender holds the private key.
///
/// Extensions and subject of the request go unused, but one that names another SPIFFE ID than the
/// one granted is refused: its sender is confused, or tries.
pub(super) fn public_key(
    der: &[u8],
    granted: &SpiffeId,
) -> Result<SubjectPublicKeyInfo, SignError> {
    if der.len() > MAX_CSR_BYTES {
        return Err(SignError::CsrTooLarge(der.len()));
    }
    let (rest, csr) =
        X509CertificationRequest::from_der(der).map_err(|_| SignError::CsrMalformed)?;
    if !rest.is_empty() {
        return Err(SignError::CsrTrailingBytes(rest.len()));
    }
    let key = &csr.certification_request_info.subject_pki;
    if !is_p256(&key.algorithm) {
        return Err(SignError::CsrKeyType(key_type(&key.algorithm)));
    }
    csr.verify_signature()
        .map_err(|_| SignError::CsrSignature)?;
    check_names(&csr, granted)?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| SignError::CsrMalformed)
}

fn check_names(csr: &X509CertificationRequest<'_>, granted: &SpiffeId) -> Result<(), SignError> {
    // Every extension request, not the first alone: what one parser skips another may read.
    let attributes = csr.certification_request_info.iter_attributes();
    let requests = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(request) => Some(request),
        _ => None,
    });
    let extensions = requests.flat_map(|request| &request.extensions);
    let names = extensions
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    for name in names.filter_map(uri_name) {
        match name {
            UriName::Text(uri) if uri == granted.as_str() => {}
            UriName::Text(uri) => return Err(other_id(uri, granted)),
            UriName::NotUtf8 => return Err(other_id("bytes that are no text", granted)),
        }
    }
    Ok(())
}

fn other_id(asked: &str, granted: &SpiffeId) -> SignError {
    SignError::CsrNamesOtherId {
        // Escaped and cut: the sender chose it, and it goes to the log.
        asked: asked.escape_default().take(256).collect(),
        granted: granted.clone(),
    }
}

fn is_p256(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && algorithm
            .parameters
            .as_ref()
            .and_then(|any| any.as_oid().ok())
            .is_some_and(|curve| curve == OID_EC_P256)
}

fn key_type(algorithm: &AlgorithmIdentifier<'_>) -> String {
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|any| any.as_oid().ok());
    match (&algorithm.algorithm, curve) {
        (oid, _) if *oid == OID_PKCS1_RSAENCRYPTION => "RSA".to_owned(),
        (oid, _) if *oid == OID_SIG_ED25519 => "Ed25519".to_owned(),
        (oid, Some(curve)) if *oid == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P384 => {
            "ECDSA P-384".to_owned()
        }
        (oid, Some(curve)) if *oid == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P521 => {
            "ECDSA P-521".to_owned()
        }
        (oid, _) => format!("of type {oid}"),
    }
}
