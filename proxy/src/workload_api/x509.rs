//! The X.509 profile: the SVID with its key, and the bundles of all trust domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use sidewind_identity::{Svid, TrustBundle, TrustBundles};
use tonic::Status;

use super::proto::{X509BundlesResponse, X509svid, X509svidResponse};
use super::push::View;
use super::state::Present;

/// What `FetchX509SVID` streams.
pub(super) struct X509Svids {
    svid: Svid,
    bundles: Arc<TrustBundles>,
}

impl PartialEq for X509Svids {
    fn eq(&self, other: &Self) -> bool {
        self.svid.chain() == other.svid.chain() && self.bundles == other.bundles
    }
}

impl View for X509Svids {
    type Message = X509svidResponse;

    fn of(present: &Present) -> Result<Self, Status> {
        Ok(Self {
            svid: present.svid()?.clone(),
            bundles: present.credentials()?.bundles.clone(),
        })
    }

    fn message(&self) -> Result<X509svidResponse, Status> {
        let own = self.svid.id().trust_domain();
        let bundle = self.bundles.get(own).map(concatenated);
        let chain: Vec<&[u8]> = self.svid.chain().iter().map(AsRef::as_ref).collect();
        let svid = X509svid {
            spiffe_id: self.svid.id().to_string(),
            x509_svid: chain.concat(),
            x509_svid_key: self.svid.key().to_pkcs8_der().to_vec(),
            // Section 4.5: a client must refuse a message without it.
            bundle: bundle
                .filter(|der| !der.is_empty())
                .ok_or_else(|| Status::unavailable("there is no trust bundle yet, try again"))?,
            hint: String::new(),
        };
        let mut federated_bundles = by_trust_domain(&self.bundles);
        federated_bundles.remove(own.id().as_str());
        Ok(X509svidResponse {
            svids: vec![svid],
            crl: Vec::new(),
            federated_bundles,
        })
    }
}

/// What `FetchX509Bundles` streams.
#[derive(PartialEq)]
pub(super) struct X509Bundles(Arc<TrustBundles>);

impl View for X509Bundles {
    type Message = X509BundlesResponse;

    fn of(present: &Present) -> Result<Self, Status> {
        Ok(Self(present.credentials()?.bundles.clone()))
    }

    fn message(&self) -> Result<X509BundlesResponse, Status> {
        Ok(X509BundlesResponse {
            crl: Vec::new(),
            bundles: by_trust_domain(&self.0),
        })
    }
}

/// Bundles by the SPIFFE ID of their trust domain. One without roots distrusts its trust domain, which the standard's
/// messages say by leaving it out: what is absent must no longer be used.
fn by_trust_domain(bundles: &TrustBundles) -> BTreeMap<String, Vec<u8>> {
    bundles
        .iter()
        .map(|bundle| (bundle.trust_domain().id().to_string(), concatenated(bundle)))
        .filter(|(_, der)| !der.is_empty())
        .collect()
}

/// Root certificates, DER after DER.
fn concatenated(bundle: &TrustBundle) -> Vec<u8> {
    let roots = bundle.authorities().iter();
    let roots: Vec<&[u8]> = roots.map(|root| root.certificate().as_ref()).collect();
    roots.concat()
}
