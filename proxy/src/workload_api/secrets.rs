//! The state as Envoy's secrets, by the names that Envoy configurations for SPIFFE use.

use prost::Message as _;
use sidewind_identity::{SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain};
use tonic::Status;

use super::proto::WipedAny;
use super::proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source};
use super::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
    spiffe_cert_validator_config,
};
use super::state::Present;

/// The type of what is served.
pub(super) const SECRET_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

const VALIDATOR_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// The own certificate with its key.
const DEFAULT: &str = "default";

/// The own trust domain's roots.
const ROOT_CA: &str = "ROOTCA";

/// The roots of every trust domain, each for its own certificates alone.
const ALL: &str = "ALL";

/// What a request without names gets.
pub(super) const EVERYTHING: [&str; 3] = [DEFAULT, ROOT_CA, ALL];

/// The secret of a name, packed as a resource.
///
/// # Errors
/// The statuses of [`Present`], and `InvalidArgument` for a name that is none of this workload's.
pub(super) fn resource(present: &Present, name: &str) -> Result<WipedAny, Status> {
    let secret = Secret {
        name: name.to_owned(),
        r#type: Some(content(present, name)?),
    };
    Ok(WipedAny {
        type_url: SECRET_TYPE.to_owned(),
        value: secret.encode_to_vec(),
    })
}

fn content(present: &Present, name: &str) -> Result<secret::Type, Status> {
    let credentials = present.credentials()?;
    let own = credentials.svid.id();
    let roots_of = |trust_domain: &TrustDomain| {
        let bundle = credentials.bundles.get(trust_domain);
        let bundle = bundle.filter(|bundle| !bundle.authorities().is_empty());
        bundle.map(roots).ok_or_else(|| unknown(name))
    };
    match name {
        DEFAULT => Ok(certificate(present.svid()?)),
        ROOT_CA => roots_of(own.trust_domain()),
        ALL => Ok(all_roots(&credentials.bundles)),
        _ => match SpiffeId::parse(name) {
            Ok(id) if id == *own => Ok(certificate(present.svid()?)),
            Ok(id) if !id.is_workload() => roots_of(id.trust_domain()),
            _ => Err(unknown(name)),
        },
    }
}

fn unknown(name: &str) -> Status {
    let name: String = name.escape_debug().take(256).collect();
    Status::invalid_argument(format!(
        "there is no secret {name} for this workload; there are default, ROOTCA, ALL, the workload's own SPIFFE ID, and \
         spiffe://TRUST-DOMAIN of each trusted trust domain"
    ))
}

fn certificate(svid: &Svid) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(svid.chain_pem().as_bytes())),
        private_key: Some(inline(svid.key().to_pkcs8_pem().as_bytes())),
    })
}

fn roots(bundle: &TrustBundle) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(bundle.to_pem().as_bytes())),
        custom_validator_config: None,
    })
}

/// Envoy's own SPIFFE validator, which chooses the roots by the trust domain of the peer's certificate.
fn all_roots(bundles: &TrustBundles) -> secret::Type {
    let trusted = bundles
        .iter()
        .filter(|bundle| !bundle.authorities().is_empty());
    let trust_domains = trusted.map(|bundle| spiffe_cert_validator_config::TrustDomain {
        name: bundle.trust_domain().to_string(),
        trust_bundle: Some(inline(bundle.to_pem().as_bytes())),
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
    };
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(WipedAny {
                type_url: VALIDATOR_TYPE.to_owned(),
                value: config.encode_to_vec(),
            }),
        }),
    })
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec())),
    }
}
