//! What one stream has yet to send: the newest state of each thing, however slowly it is read.

use super::Query;
use sidewind_api::v1;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Why a stream is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Another stream of the same process took its place.
    Replaced,
    /// The control plane is stopping.
    ShuttingDown,
    /// Its identity or certificate was banned.
    Banned,
    /// The root that its certificate chains to was revoked.
    Distrusted,
}

/// One thing to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// The stream is to end.
    End(EndReason),
    /// The trust bundles.
    Bundles(Arc<v1::TrustBundles>),
    /// Who is banned.
    Bans(Arc<v1::Bans>),
    /// The proxy is to give back the newest list of bans that it has.
    ReturnBans,
    /// Who may call the workload.
    Policy(Arc<v1::InboundPolicy>),
    /// Authorities that are not to be relied on.
    Tainted(Arc<v1::TaintedAuthorities>),
    /// What a gateway listens on.
    Gateway(Arc<v1::GatewayConfig>),
    /// The answer to a subscription.
    Destination(Query, Option<Arc<v1::Service>>),
}

/// A stream's outbox. Bounded by what the stream is subscribed to.
#[derive(Debug, Default)]
pub struct Outbox {
    content: Mutex<Content>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Content {
    end: Option<EndReason>,
    bundles: Option<Arc<v1::TrustBundles>>,
    bans: Option<Arc<v1::Bans>>,
    return_bans: bool,
    tainted: Option<Arc<v1::TaintedAuthorities>>,
    policy: Option<Arc<v1::InboundPolicy>>,
    /// The policy that was last taken out, to pass over one that says the same.
    policy_taken: Option<Arc<v1::InboundPolicy>>,
    gateway: Option<Arc<v1::GatewayConfig>>,
    /// As `policy_taken`. Most proxies are no gateways, and are never told that they have no listeners.
    gateway_taken: Option<Arc<v1::GatewayConfig>>,
    destinations: BTreeMap<Query, Option<Arc<v1::Service>>>,
}

impl Outbox {
    pub(super) fn end(&self, reason: EndReason) {
        self.content().end = Some(reason);
        self.filled.notify_one();
    }

    pub(super) fn put_bundles(&self, bundles: Arc<v1::TrustBundles>) {
        self.content().bundles = Some(bundles);
        self.filled.notify_one();
    }

    pub(super) fn put_bans(&self, bans: Arc<v1::Bans>) {
        self.content().bans = Some(bans);
        self.filled.notify_one();
    }

    pub(super) fn ask_for_bans(&self) {
        self.content().return_bans = true;
        self.filled.notify_one();
    }

    pub(super) fn put_tainted(&self, tainted: Arc<v1::TaintedAuthorities>) {
        self.content().tainted = Some(tainted);
        self.filled.notify_one();
    }

    pub(super) fn put_policy(&self, policy: Arc<v1::InboundPolicy>) {
        let mut content = self.content();
        let says_the_same = |other: &Arc<v1::InboundPolicy>| {
            let (other, policy) = (other.as_ref(), policy.as_ref());
            (other.plaintext, other.default_deny, &other.rules)
                == (policy.plaintext, policy.default_deny, &policy.rules)
        };
        let known = content.policy_taken.as_ref().is_some_and(says_the_same);
        content.policy = (!known).then_some(policy);
        drop(content);
        self.filled.notify_one();
    }

    pub(super) fn put_gateway(&self, gateway: Arc<v1::GatewayConfig>) {
        let mut content = self.content();
        let taken = content.gateway_taken.as_ref();
        let known = taken.map_or(gateway.listeners.is_empty(), |taken| {
            taken.listeners == gateway.listeners
        });
        content.gateway = (!known).then_some(gateway);
        drop(content);
        self.filled.notify_one();
    }

    pub(super) fn put_destination(&self, query: Query, service: Option<Arc<v1::Service>>) {
        self.content().destinations.insert(query, service);
        self.filled.notify_one();
    }

    pub(super) fn forget_destination(&self, query: &Query) {
        self.content().destinations.remove(query);
    }

    /// The next thing to send; waits for one. Nothing is lost when the future is dropped before its end.
    pub async fn next(&self) -> Outgoing {
        loop {
            let filled = self.filled.notified();
            if let Some(outgoing) = self.content().take() {
                return outgoing;
            }
            filled.await;
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn take(&mut self) -> Option<Outgoing> {
        if let Some(reason) = self.end {
            return Some(Outgoing::End(reason));
        }
        // Nothing is more urgent than to cut somebody off.
        if let Some(bans) = self.bans.take() {
            return Some(Outgoing::Bans(bans));
        }
        if std::mem::take(&mut self.return_bans) {
            return Some(Outgoing::ReturnBans);
        }
        // What to verify peers with comes before whom to expect.
        if let Some(bundles) = self.bundles.take() {
            return Some(Outgoing::Bundles(bundles));
        }
        if let Some(tainted) = self.tainted.take() {
            return Some(Outgoing::Tainted(tainted));
        }
        if let Some(policy) = self.policy.take() {
            self.policy_taken = Some(Arc::clone(&policy));
            return Some(Outgoing::Policy(policy));
        }
        if let Some(gateway) = self.gateway.take() {
            self.gateway_taken = Some(Arc::clone(&gateway));
            return Some(Outgoing::Gateway(gateway));
        }
        let (query, service) = self.destinations.pop_first()?;
        Some(Outgoing::Destination(query, service))
    }
}
