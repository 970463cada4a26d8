//! Where the keys of an issuer come from.

use super::super::document::Reader;
use crate::https::HttpsUrl;
use serde_saphyr::Spanned;
use sidewind_identity::jwt::Algorithm;
use std::path::PathBuf;

/// Where a JWKS comes from. Never from a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A file, read at each use.
    File(PathBuf),
    /// A URL.
    Url {
        /// The JWKS.
        url: HttpsUrl,
        /// Whom to believe there; none: the system's authorities.
        ca_file: Option<PathBuf>,
    },
    /// What the issuer's discovery document names (OpenID Connect Discovery 1.0, section 4), which must be
    /// on the issuer's own host.
    Discovery {
        /// The issuer's URL.
        issuer: HttpsUrl,
        /// The issuer as it is configured, which its document must repeat.
        given: String,
        /// Whom to believe there; none: the system's authorities.
        ca_file: Option<PathBuf>,
    },
}

/// The algorithms that tokens may be signed with, unless an issuer's configuration says fewer.
pub const TOKEN_ALGORITHMS: &[Algorithm] = &[Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384];

/// Reads `jwksFile` or `jwksUrl`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    jwks_file: Option<&Spanned<String>>,
    jwks_url: Option<&Spanned<String>>,
    ca_file: Option<&Spanned<String>>,
) -> Option<KeySource> {
    if let (Some(file), Some(_)) = (jwks_file, jwks_url) {
        reader.refuse(file, "and `jwksUrl` exclude each other");
    }
    if let Some(file) = jwks_file {
        if let Some(ca) = ca_file {
            reader.refuse(ca, "is for what is fetched; a `jwksFile` is not");
        }
        return super::file(reader, Some(file)).map(KeySource::File);
    }
    let url = url(reader, jwks_url?)?;
    let ca_file = super::file(reader, ca_file);
    Some(KeySource::Url { url, ca_file })
}

/// Reads a URL.
pub(super) fn url(reader: &mut Reader<'_>, text: &Spanned<String>) -> Option<HttpsUrl> {
    match HttpsUrl::parse(&text.value) {
        Ok(url) => Some(url),
        Err(error) => {
            reader.refuse(text, error);
            None
        }
    }
}
