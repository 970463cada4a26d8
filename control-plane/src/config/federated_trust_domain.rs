//! `FederatedTrustDomain`: a foreign trust domain, and where its bundle is fetched from (SPIFFE Federation, section 5.1).

use super::Draft;
use super::document::{Reader, Resource, present};
use super::error::Place;
use crate::https::HttpsUrl;
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::duration;
use sidewind_identity::bundle::document::{BundleDocument, MAX_DOCUMENT_BYTES};
use sidewind_identity::{SpiffeId, TrustBundle, TrustDomain};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Most foreign trust domains: each is fetched by a task of its own, and a proxy may get all of them.
pub const MAX_FEDERATED: usize = 64;
/// How often a bundle may be fetched.
pub const REFRESH_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// A foreign trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedTrustDomain {
    /// Whose bundle it is. The bundle itself does not say.
    pub trust_domain: TrustDomain,
    /// Where it is fetched from.
    pub url: HttpsUrl,
    /// How its server proves itself.
    pub profile: EndpointProfile,
    /// How often it is fetched, where not as often as the bundle itself hints.
    pub refresh_interval: Option<Duration>,
}

/// How the server of a bundle proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointProfile {
    /// By a certificate for the URL's host.
    Web {
        /// Whom to believe; none: the system's authorities.
        ca_file: Option<PathBuf>,
    },
    /// By an X.509-SVID.
    Spiffe {
        /// Of this identity, and no other.
        endpoint: SpiffeId,
        /// What to verify it with until the first bundle was fetched, where it is of the trust domain itself.
        bootstrap: Option<Bootstrap>,
    },
}

impl EndpointProfile {
    /// The profile's name in the standard.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Web { .. } => "https_web",
            Self::Spiffe { .. } => "https_spiffe",
        }
    }
}

/// The bundle that an endpoint is first verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// In the document.
    Inline(TrustBundle),
    /// In a file, read at each use.
    File(PathBuf),
}

/// Reads a bundle that an operator gives: a SPIFFE bundle document, or certificates in PEM.
///
/// # Errors
/// A sentence about what is wrong with it, to follow the name of the field or file.
pub fn read_bootstrap(
    trust_domain: &TrustDomain,
    text: &str,
    now: SystemTime,
) -> Result<TrustBundle, String> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(format!("has more than {MAX_DOCUMENT_BYTES} bytes"));
    }
    let bundle = if text.trim_start().starts_with("-----BEGIN") {
        TrustBundle::from_pem(trust_domain.clone(), text)
            .map_err(|error| format!("is no bundle of {trust_domain}: {error}"))?
    } else {
        let document = BundleDocument::parse(trust_domain.clone(), text.as_bytes(), now)
            .map_err(|error| format!("is no bundle of {trust_domain}: {error}"))?;
        if let Some(finding) = document.findings().iter().find(|it| it.reason.is_alarm()) {
            return Err(format!("is no bundle of {trust_domain}: {finding}"));
        }
        document.x509().clone()
    };
    if bundle.authorities().is_empty() {
        return Err("has no X.509 authority, so that no endpoint could be verified".to_owned());
    }
    Ok(bundle)
}

/// A foreign trust domain with where it stands.
#[derive(Debug)]
pub(super) struct PlacedTrustDomain {
    pub(super) domain: FederatedTrustDomain,
    pub(super) trust_domain_at: Place,
    pub(super) endpoint_at: Option<Place>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    trust_domain: Spanned<String>,
    url: Spanned<String>,
    profile: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    endpoint_spiffe_id: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    bootstrap_bundle: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    bootstrap_bundle_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ca_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    refresh_interval: Option<Spanned<String>>,
}

/// Reads a document into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spanned<Spec>>>() else {
        return;
    };
    resource
        .metadata
        .check("FederatedTrustDomain", reader, draft);
    let spec = &resource.spec.value;
    let trust_domain = read_trust_domain(reader, draft, &spec.trust_domain);
    let url = match HttpsUrl::parse_exact(&spec.url.value) {
        Ok(url) => Some(url),
        Err(error) => {
            reader.refuse(&spec.url, error);
            None
        }
    };
    let refresh_interval = read_interval(reader, spec.refresh_interval.as_ref());
    let profile = match spec.profile.value.as_str() {
        "https_web" => read_web(reader, spec),
        "https_spiffe" => {
            let domain = trust_domain.as_ref();
            domain.and_then(|domain| read_spiffe(reader, spec, &resource.spec, domain))
        }
        other => {
            let message = format!("{other:?} is not one of https_web, https_spiffe");
            reader.refuse(&spec.profile, message);
            None
        }
    };
    let (Some(trust_domain), Some(url), Some(profile)) = (trust_domain, url, profile) else {
        return;
    };
    if reader.is_sound() {
        let endpoint = spec.endpoint_spiffe_id.as_ref();
        draft.add_federated(PlacedTrustDomain {
            trust_domain_at: reader.place(&spec.trust_domain),
            endpoint_at: endpoint.map(|at| reader.place(at)),
            domain: FederatedTrustDomain {
                trust_domain,
                url,
                profile,
                refresh_interval,
            },
        });
    }
}

fn read_trust_domain(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    text: &Spanned<String>,
) -> Option<TrustDomain> {
    let trust_domain = match TrustDomain::parse(&text.value) {
        Ok(trust_domain) => trust_domain,
        Err(error) => {
            reader.refuse(text, error);
            return None;
        }
    };
    if draft.expectations.trust_domain.as_ref() == Some(&trust_domain) {
        let message = "is this control plane's own trust domain, whose bundle it makes itself";
        reader.refuse(text, message);
        return None;
    }
    reader.take(draft, text, format!("trust domain {trust_domain}"));
    Some(trust_domain)
}

fn read_interval(reader: &mut Reader<'_>, text: Option<&Spanned<String>>) -> Option<Duration> {
    let text = text?;
    match duration::parse(&text.value) {
        Ok(interval) if REFRESH_INTERVAL.contains(&interval) => return Some(interval),
        Ok(_) => reader.refuse(text, "must be from 1s to 24h"),
        Err(error) => reader.refuse(text, error),
    }
    None
}

fn read_web(reader: &mut Reader<'_>, spec: &Spec) -> Option<EndpointProfile> {
    let others = [
        &spec.endpoint_spiffe_id,
        &spec.bootstrap_bundle,
        &spec.bootstrap_bundle_file,
    ];
    for field in others.into_iter().flatten() {
        let message = "is for profile https_spiffe; https_web knows its server by the URL's host";
        reader.refuse(field, message);
    }
    let ca_file = read_file(reader, spec.ca_file.as_ref());
    reader
        .is_sound()
        .then_some(EndpointProfile::Web { ca_file })
}

fn read_spiffe(
    reader: &mut Reader<'_>,
    spec: &Spec,
    at: &Spanned<Spec>,
    trust_domain: &TrustDomain,
) -> Option<EndpointProfile> {
    if let Some(field) = &spec.ca_file {
        let message = "is for profile https_web; https_spiffe verifies by `bootstrapBundle`";
        reader.refuse(field, message);
    }
    let Some(text) = &spec.endpoint_spiffe_id else {
        let message = "must have `endpointSpiffeId`: who serves the bundle";
        reader.refuse(at, message);
        return None;
    };
    let endpoint = match SpiffeId::parse(&text.value) {
        Ok(id) if id.is_workload() => id,
        Ok(_) => {
            reader.refuse(
                text,
                "is a trust domain's and no workload's: it needs a path",
            );
            return None;
        }
        Err(error) => {
            reader.refuse(text, error);
            return None;
        }
    };
    let bootstrap = read_given(reader, spec, trust_domain);
    let serves_itself = endpoint.trust_domain() == trust_domain;
    if serves_itself && bootstrap.is_none() && reader.is_sound() {
        let message = format!(
            "must have `bootstrapBundle` or `bootstrapBundleFile`: what {endpoint} is first verified with"
        );
        reader.refuse(at, message);
    }
    if !serves_itself && bootstrap.is_some() {
        let message = format!(
            "is of trust domain {}, and is verified with the bundle of that one: leave the bootstrap bundle out",
            endpoint.trust_domain()
        );
        reader.refuse(text, message);
    }
    reader.is_sound().then_some(EndpointProfile::Spiffe {
        endpoint,
        bootstrap,
    })
}

fn read_given(
    reader: &mut Reader<'_>,
    spec: &Spec,
    trust_domain: &TrustDomain,
) -> Option<Bootstrap> {
    match (&spec.bootstrap_bundle, &spec.bootstrap_bundle_file) {
        (Some(text), None) => {
            match read_bootstrap(trust_domain, &text.value, SystemTime::now()) {
                Ok(bundle) => return Some(Bootstrap::Inline(bundle)),
                Err(message) => reader.refuse(text, message),
            }
            None
        }
        (None, Some(_)) => {
            read_file(reader, spec.bootstrap_bundle_file.as_ref()).map(Bootstrap::File)
        }
        (Some(text), Some(_)) => {
            reader.refuse(text, "and `bootstrapBundleFile` exclude each other");
            None
        }
        (None, None) => None,
    }
}

/// A path of a file; relative ones would depend on where the process was started.
fn read_file(reader: &mut Reader<'_>, given: Option<&Spanned<String>>) -> Option<PathBuf> {
    let given = given?;
    if !given.value.starts_with('/') {
        reader.refuse(given, "must be the absolute path of a file");
    }
    Some(PathBuf::from(&given.value))
}

#[cfg(test)]
#[path = "federated_trust_domain_tests.rs"]
mod tests;
