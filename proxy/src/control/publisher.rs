//! The present SVID and trust bundles, and the TLS configurations made of both once for all connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{ClientConfig, ServerConfig};
use sidewind_api::v1;
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle, JwtBundleError, JwtBundles};
use sidewind_identity::{ClientAuth, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain, tls};
use tokio::sync::watch;

use super::error::ControlError;

/// ALPN of the mesh port: ours first, then HBONE's.
const MESH_ALPN: &[&[u8]] = &[b"sidewind/1", b"h2"];

/// Most trust domains that are believed at once.
const MAX_TRUST_DOMAINS: usize = 256;

/// Who this workload is, in the form that connections use. One for each certificate and set of bundles.
#[derive(Debug, Clone)]
pub(crate) struct MeshIdentity {
    pub(crate) id: SpiffeId,
    /// Until when, inclusive, peers accept it.
    pub(crate) not_after: SystemTime,
    /// Grows with each new certificate and set of authorities: connections of an older generation finish their work and
    /// take no more.
    pub(crate) generation: u64,
    pub(crate) client_tls: Arc<ClientConfig>,
    pub(crate) server_tls: Arc<ServerConfig>,
    /// What peers are verified with.
    pub(crate) bundles: Arc<TrustBundles>,
    /// What its tasks may have; none where they go as the workload does.
    pub(crate) tasks: Option<TaskTerms>,
    #[cfg(test)]
    pub(crate) serial_hex: String,
}

/// What a registration says of the identities of its workload's Airflow tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskTerms {
    /// They are given for the task's token of the Execution API alone.
    pub(crate) needs_token: bool,
}

/// The same for programs beside the proxy, which make connections of their own: what the Workload API hands out.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) svid: Svid,
    pub(crate) bundles: Arc<TrustBundles>,
    pub(crate) jwt_bundles: Arc<JwtBundles>,
}

/// Holds SVID and bundles, and publishes a [`MeshIdentity`] and [`Credentials`] whenever they change.
#[derive(Debug)]
pub(super) struct Publisher {
    trust_domain: TrustDomain,
    state: Mutex<State>,
    identity: watch::Sender<Option<Arc<MeshIdentity>>>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    svid: Option<Svid>,
    tasks: Option<TaskTerms>,
    bundles: Arc<TrustBundles>,
    jwt_bundles: Arc<JwtBundles>,
    generation: u64,
}

/// What became of bundles that arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BundleUpdate {
    pub(super) changed: bool,
    /// What was not taken, each a sentence.
    pub(super) problems: Vec<String>,
}

impl Publisher {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            state: Mutex::default(),
            identity: watch::channel(None).0,
            credentials: watch::channel(None).0,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<MeshIdentity>>> {
        self.identity.subscribe()
    }

    pub(super) fn credentials(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.credentials.subscribe()
    }

    pub(super) fn bundles(&self) -> Arc<TrustBundles> {
        self.state().bundles.clone()
    }

    pub(super) fn svid(&self) -> Option<Svid> {
        self.state().svid.clone()
    }

    /// The own trust domain's roots as the operator gives them. They replace whatever was there.
    pub(super) fn replace_own_bundle(&self, bundle: TrustBundle) -> Result<(), ControlError> {
        let mut state = self.state();
        let mut next = state.clone();
        let mut bundles = (*next.bundles).clone();
        bundles.insert(bundle);
        next.bundles = Arc::new(bundles);
        self.publish(&mut state, next)
    }

    /// Puts a new SVID, and the bundles that came with it, in the place of the present ones.
    pub(super) fn install(
        &self,
        svid: Svid,
        bundles: Vec<v1::TrustBundle>,
        tasks: Option<TaskTerms>,
    ) -> Result<BundleUpdate, ControlError> {
        let mut state = self.state();
        let mut next = state.clone();
        let update = self.merge(&mut next, bundles);
        next.svid = Some(svid);
        next.tasks = tasks;
        self.publish(&mut state, next)?;
        Ok(update)
    }

    /// Takes the complete set of bundles as the control plane's stream gives it.
    pub(super) fn update_bundles(
        &self,
        bundles: Vec<v1::TrustBundle>,
    ) -> Result<BundleUpdate, ControlError> {
        let mut state = self.state();
        let mut next = state.clone();
        let update = self.merge(&mut next, bundles);
        if update.changed {
            self.publish(&mut state, next)?;
        } else if next.jwt_bundles != state.jwt_bundles {
            // Connections between proxies know nothing of these keys, and go on as they are.
            *state = next;
            self.publish_credentials(&state);
        }
        Ok(update)
    }

    /// Bundles of trust domains that are no longer named are dropped, but never the own one.
    fn merge(&self, state: &mut State, received: Vec<v1::TrustBundle>) -> BundleUpdate {
        let mut update = BundleUpdate::default();
        let mut bundles = TrustBundles::new();
        let mut jwt_bundles = JwtBundles::new();
        for mut message in received.into_iter().take(MAX_TRUST_DOMAINS) {
            let jwt_authorities = std::mem::take(&mut message.jwt_authorities);
            match self.check_bundle(message, &state.bundles) {
                Ok(bundle) => {
                    let trust_domain = bundle.trust_domain().clone();
                    bundles.insert(bundle);
                    match jwt_bundle(&trust_domain, jwt_authorities) {
                        Ok(bundle) => {
                            jwt_bundles.insert(bundle);
                        }
                        Err(error) => {
                            keep(&mut jwt_bundles, &state.jwt_bundles, &trust_domain);
                            let problem = format!("the JWT keys of {trust_domain}: {error}");
                            update.problems.push(problem);
                        }
                    }
                }
                Err((trust_domain, problem)) => {
                    // What was believed stays, rather than nothing.
                    if let Some(name) = &trust_domain {
                        keep(&mut jwt_bundles, &state.jwt_bundles, name);
                        if let Some(kept) = state.bundles.get(name) {
                            bundles.insert(kept.clone());
                        }
                    }
                    update.problems.push(problem);
                }
            }
        }
        if bundles.get(&self.trust_domain).is_none()
            && let Some(own) = state.bundles.get(&self.trust_domain)
        {
            bundles.insert(own.clone());
            keep(&mut jwt_bundles, &state.jwt_bundles, &self.trust_domain);
        }
        if jwt_bundles != *state.jwt_bundles {
            state.jwt_bundles = Arc::new(jwt_bundles);
        }
        if bundles != *state.bundles {
            state.bundles = Arc::new(bundles);
            update.changed = true;
        }
        update
    }

    fn check_bundle(
        &self,
        message: v1::TrustBundle,
        present: &TrustBundles,
    ) -> Result<TrustBundle, (Option<TrustDomain>, String)> {
        let name = message.trust_domain;
        let trust_domain = TrustDomain::parse(&name)
            .map_err(|error| (None, format!("a bundle of trust domain {name:?}: {error}")))?;
        let refuse = |problem: String| {
            (
                Some(trust_domain.clone()),
                format!("the bundle of {name}: {problem}"),
            )
        };
        if let Some(known) = present.get(&trust_domain)
            && message.sequence < known.sequence()
        {
            return Err(refuse(format!(
                "its sequence {} is older than {}, which stays",
                message.sequence,
                known.sequence()
            )));
        }
        if message.authorities.is_empty() && trust_domain == self.trust_domain {
            return Err(refuse(
                "it is empty, so nobody could be believed".to_owned(),
            ));
        }
        TrustBundle::from_der(trust_domain.clone(), message.sequence, message.authorities)
            .map_err(|error| refuse(error.to_string()))
    }

    /// Makes `next` the present state, once TLS has taken it.
    fn publish(&self, state: &mut State, mut next: State) -> Result<(), ControlError> {
        if let Some(svid) = &next.svid {
            let mut identity = match self.unchanged(state, &next) {
                Some(present) => (*present).clone(),
                None => {
                    next.generation += 1;
                    mesh_identity(svid, &next.bundles, next.generation)?
                }
            };
            identity.bundles = Arc::clone(&next.bundles);
            identity.tasks = next.tasks;
            *state = next;
            self.identity.send_replace(Some(Arc::new(identity)));
            self.publish_credentials(state);
        } else {
            *state = next;
        }
        Ok(())
    }

    /// The present identity, where connections made with it are as good as those of `next`: a bundle of a later
    /// sequence with the same authorities is no reason for handshakes.
    fn unchanged(&self, state: &State, next: &State) -> Option<Arc<MeshIdentity>> {
        let certificate = |state: &State| state.svid.as_ref()?.chain().first().cloned();
        let authorities = |state: &State| -> Vec<_> {
            let bundles = state.bundles.iter();
            let each = bundles.map(|it| (it.trust_domain().clone(), it.authorities().to_vec()));
            each.collect()
        };
        let present = self.identity.borrow().clone()?;
        (certificate(state) == certificate(next) && authorities(state) == authorities(next))
            .then_some(present)
    }

    fn publish_credentials(&self, state: &State) {
        let credentials = state.svid.clone().map(|svid| {
            Arc::new(Credentials {
                svid,
                bundles: state.bundles.clone(),
                jwt_bundles: state.jwt_bundles.clone(),
            })
        });
        self.credentials.send_replace(credentials);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so a poisoned lock still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn jwt_bundle(
    trust_domain: &TrustDomain,
    received: Vec<v1::JwtAuthority>,
) -> Result<JwtBundle, JwtBundleError> {
    let authorities = received.into_iter().map(|authority| {
        let expires = u64::try_from(authority.expires_at_unix).ok();
        let expires = expires.filter(|seconds| *seconds > 0);
        let expires =
            expires.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        JwtAuthority::from_spki_der(&authority.key_id, &authority.public_key, expires)
    });
    JwtBundle::new(trust_domain.clone(), authorities.collect::<Result<_, _>>()?)
}

/// Takes a trust domain's keys over from those that were believed.
fn keep(bundles: &mut JwtBundles, present: &JwtBundles, trust_domain: &TrustDomain) {
    if let Some(kept) = present.get(trust_domain) {
        bundles.insert(kept.clone());
    }
}

/// An identity in the form that connections use.
pub(super) fn mesh_identity(
    svid: &Svid,
    bundles: &Arc<TrustBundles>,
    generation: u64,
) -> Result<MeshIdentity, ControlError> {
    let failed = |error: tls::TlsConfigError| ControlError::Local {
        what: "set up TLS",
        problem: error.to_string(),
    };
    Ok(MeshIdentity {
        id: svid.id().clone(),
        not_after: svid.not_after(),
        generation,
        tasks: None,
        bundles: bundles.clone(),
        client_tls: tls::client_config(svid, bundles, MESH_ALPN).map_err(failed)?,
        server_tls: tls::server_config(svid, bundles, MESH_ALPN, ClientAuth::Required)
            .map_err(failed)?,
        #[cfg(test)]
        serial_hex: svid.serial_hex().to_owned(),
    })
}
