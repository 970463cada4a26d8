//! TLS as the mesh speaks it: version 1.3 alone, aws-lc-rs, hybrid key exchange first, no resumption.
//!
//! One configuration serves every connection of a certificate. Which peer is expected is compared by the
//! caller, after the handshake and before it sends a byte: see [`peer_identity`].

mod peer;
#[cfg(test)]
mod resumption_tests;
mod verifier;

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{DnsName, ServerName};

pub use peer::{PeerError, PeerIdentity, peer_identity};
pub use verifier::SpiffeVerifier;

use crate::bundle::TrustBundles;
use crate::svid::Svid;
use crate::verify::{VerifyError, VerifyOptions};

/// Whether a server demands a certificate of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a certificate is refused.
    Required,
    /// A client without a certificate is let in as nobody; one that presents a certificate must prove it.
    Optional,
    /// No client is asked for a certificate: whoever asks gets the same.
    NotAsked,
}

/// What the configurations take besides certificates and bundles.
#[derive(Clone)]
pub struct TlsOptions {
    /// Where verification reads the time.
    pub time_provider: Arc<dyn TimeProvider>,
    /// What the deployment decides about verification.
    pub verify: VerifyOptions,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            time_provider: Arc::new(DefaultTimeProvider),
            verify: VerifyOptions::default(),
        }
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

/// A configuration cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the TLS configuration: {0}")]
pub struct TlsConfigError(#[from] rustls::Error);

/// The cryptography of every TLS connection of the mesh, the same whatever other crates install as default.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    })
}

/// The configuration of a client that presents an SVID.
///
/// # Errors
/// [`TlsConfigError`] when rustls refuses the parts.
pub fn client_config(
    svid: &Svid,
    bundles: &Arc<TrustBundles>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    client_config_with(Some(svid), bundles, alpn, &TlsOptions::default())
}

/// The configuration of a client that has no SVID yet: it verifies the server and presents nothing.
///
/// # Errors
/// [`TlsConfigError`] when rustls refuses the parts.
pub fn anonymous_client_config(
    bundles: &Arc<TrustBundles>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    client_config_with(None, bundles, alpn, &TlsOptions::default())
}

/// As [`client_config`] or, without an SVID, [`anonymous_client_config`], with options.
///
/// # Errors
/// [`TlsConfigError`] when rustls refuses the parts.
pub fn client_config_with(
    svid: Option<&Svid>,
    bundles: &Arc<TrustBundles>,
    alpn: &[&[u8]],
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let verifier = SpiffeVerifier::new(bundles.clone(), options.verify.clone());
    client_config_of(svid, Arc::new(verifier), alpn, options)
}

fn client_config_of(
    svid: Option<&Svid>,
    verifier: Arc<dyn ServerCertVerifier>,
    alpn: &[&[u8]],
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let builder =
        ClientConfig::builder_with_details(provider().clone(), options.time_provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
            svid.certified_key().clone(),
        ))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A resumed session is not verified again, so a ban or a rotated bundle would not reach it.
    config.resumption = Resumption::disabled();
    // The name given to rustls is a placeholder and says nothing to the server.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The configuration of a server that presents an SVID.
///
/// # Errors
/// [`TlsConfigError`] when rustls refuses the parts.
pub fn server_config(
    svid: &Svid,
    bundles: &Arc<TrustBundles>,
    alpn: &[&[u8]],
    client_auth: ClientAuth,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    server_config_with(svid, bundles, alpn, client_auth, &TlsOptions::default())
}

/// As [`server_config`], with options.
///
/// # Errors
/// [`TlsConfigError`] when rustls refuses the parts.
pub fn server_config_with(
    svid: &Svid,
    bundles: &Arc<TrustBundles>,
    alpn: &[&[u8]],
    client_auth: ClientAuth,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let verifier =
        SpiffeVerifier::new(bundles.clone(), options.verify.clone()).with_client_auth(client_auth);
    server_config_of(svid, Arc::new(verifier), alpn, options)
}

fn server_config_of(
    svid: &Svid,
    verifier: Arc<dyn ClientCertVerifier>,
    alpn: &[&[u8]],
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let mut config =
        ServerConfig::builder_with_details(provider().clone(), options.time_provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(
                svid.certified_key().clone(),
            )));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // As in the client, which an attacker controls: only this side's refusal counts.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The name to give rustls for every peer. It is never sent and never compared: a peer is known by its SPIFFE ID.
pub fn server_name() -> ServerName<'static> {
    static NAME: OnceLock<ServerName<'static>> = OnceLock::new();
    NAME.get_or_init(|| {
        DnsName::try_from_str("spiffe.invalid").map_or_else(
            |_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
            |name| ServerName::DnsName(name.to_owned()),
        )
    })
    .clone()
}

/// Says why a handshake failed, with the reason of [`SpiffeVerifier`] where it was the one to refuse.
///
/// rustls shows the errors of foreign verifiers in their debug form.
pub fn describe(error: &rustls::Error) -> String {
    match VerifyError::from_tls(error) {
        Some(reason) => format!("invalid peer certificate: {reason}"),
        None => error.to_string(),
    }
}
