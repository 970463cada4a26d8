//! All the proxies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sidewind_identity::PrivateKey;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Result;
use crate::grpc::Failure;
use crate::proxy::{Common, Proxy};
use crate::server::{Admin, Server};
use crate::tally::Tally;

/// Join tokens that are asked for at once.
const TOKENS_AT_ONCE: usize = 16;
/// Attestations at once, at first.
const ATTESTATIONS_AT_ONCE: usize = 48;
/// How long the writes that follow the answers are waited for.
const WRITING_TIME: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// All the proxies; they are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Fleet {
    proxies: Vec<Arc<Proxy>>,
    common: Arc<Common>,
    running: std::sync::Mutex<JoinSet<()>>,
}

impl Fleet {
    pub(crate) fn new(number: u32, server: &Server) -> Result<Self> {
        let key = PrivateKey::generate()?;
        let common = Arc::new(Common {
            server: server.address(),
            bundles: server.bundles()?,
            csr: key.csr_der()?,
            key,
            tally: Tally::new(),
        });
        let proxies = (0..number)
            .map(|number| Arc::new(Proxy::new(number, Arc::clone(&common))))
            .collect();
        Ok(Self {
            proxies,
            common,
            running: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.proxies.len()
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.common.tally
    }

    /// A join token for each.
    pub(crate) async fn give_tokens(&self, admin: &Admin) -> Result<()> {
        let make = |proxy: Arc<Proxy>| {
            let admin = admin.clone();
            async move {
                let token = admin.token(&proxy.spiffe_id()).await?;
                proxy.give(token);
                Ok(())
            }
        };
        self.each(TOKENS_AT_ONCE, make).await
    }

    /// The first certificate of each.
    pub(crate) async fn attest(&self) -> Result<()> {
        let attest = |proxy: Arc<Proxy>| async move {
            let attested = proxy.attest().await;
            attested.map_err(|failure| format!("attesting: {}", failure.reason).into())
        };
        self.each(ATTESTATIONS_AT_ONCE, attest).await
    }

    /// Lets all of them connect, and stay so.
    pub(crate) fn connect(&self) {
        let mut running = self.running.lock().expect("no panic before");
        for proxy in &self.proxies {
            running.spawn(Arc::clone(proxy).run());
        }
    }

    pub(crate) fn forget_svids(&self) {
        self.proxies.iter().for_each(|proxy| proxy.forget_svid());
    }

    /// Waits until every stream is open.
    pub(crate) async fn all_connected(&self, time: Duration) -> Result<()> {
        let all = self.len();
        if self.tally().wait(time, |c| c.streams >= all).await {
            return Ok(());
        }
        let (streams, failures) = self.tally().read(|c| (c.streams, c.failures()));
        Err(format!("only {streams} of {all} proxies came; {failures}").into())
    }

    /// Renews certificates for a time, `at_once` of them together; gives back how many.
    pub(crate) async fn renew(&self, time: Duration, at_once: usize, anew: bool) -> Result<usize> {
        let (next, renewed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let end = Instant::now() + time;
        let worker = async || {
            while Instant::now() < end {
                let turn = next.fetch_add(1, Ordering::Relaxed) % self.len();
                let proxy = self.proxies.get(turn).ok_or(Failure::of("no-proxy"))?;
                match anew {
                    true => proxy.renew_anew().await?,
                    false => proxy.renew().await?,
                }
                renewed.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Failure>(())
        };
        let workers = futures_util::future::try_join_all((0..at_once).map(|_| worker()));
        let done = workers.await;
        done.map_err(|failure| format!("a renewal failed: {}", failure.reason))?;
        Ok(renewed.into_inner())
    }

    async fn each<F>(&self, at_once: usize, work: impl Fn(Arc<Proxy>) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for proxy in &self.proxies {
            if tasks.len() >= at_once
                && let Some(done) = tasks.join_next().await
            {
                done??;
            }
            tasks.spawn(work(Arc::clone(proxy)));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }
}

/// Waits until the control plane uses hardly more of the processor than when it was idle; gives back how much it has
/// used until then.
pub(crate) async fn until_quiet(server: &Server, idle_cores: f64) -> Result<Duration> {
    let (began, first) = (Instant::now(), server.cpu()?);
    let mut before = first;
    while began.elapsed() < WRITING_TIME {
        tokio::time::sleep(LOOK).await;
        let now = server.cpu()?;
        let cores = (now - before).as_secs_f64() / LOOK.as_secs_f64();
        if cores < 2.0 * idle_cores + 0.05 {
            break;
        }
        before = now;
    }
    Ok(before - first)
}
