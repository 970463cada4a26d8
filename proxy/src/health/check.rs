//! Active checks: a thread of their own, so that a busy worker delays none of them and they delay no worker; one for
//! each endpoint in the process, however many workers there are.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::RngExt as _;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::endpoint::EndpointHealth;
use super::probe::{Finding, Prober};
use super::{CheckSettings, Health, ServiceHealth, lock};
use crate::config::Config;
use crate::control::Control;

/// Checks that are under way at once; further ones wait for a place.
const MAX_CONCURRENT: usize = 64;

/// Endpoints that are checked at most.
const MAX_CHECKED: usize = 10_000;

/// The thread of the checks.
#[derive(Debug)]
pub(crate) struct Checks {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Checks {
    /// Ends the checks.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the health checks panicked");
        }
    }
}

/// Waits until a policy asks for checks, and starts their thread then: most proxies need none.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) async fn start_when_wanted(
    health: Health,
    config: Arc<Config>,
    control: Control,
) -> std::io::Result<Checks> {
    let mut changed = health.shared.changed.subscribe();
    while !health.services().iter().any(|service| service.has_checks()) {
        // The sender lives as long as `health` does.
        let _ = changed.changed().await;
    }
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || run(&health, &config, &control, stopped))?;
    Ok(Checks { stop, thread })
}

fn run(health: &Health, config: &Config, control: &Control, mut stopped: watch::Receiver<bool>) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "there are no health checks"),
    };
    runtime.block_on(async {
        let prober = Rc::new(Prober::new(config, control));
        tokio::task::spawn_local(Rc::clone(&prober).follow_identity());
        tokio::select! {
            () = follow(health, prober) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    });
}

impl ServiceHealth {
    fn has_checks(&self) -> bool {
        lock(&self.members).settings.check.is_some()
    }
}

/// What makes one series of checks; another one begins anew.
type CheckKey = (usize, usize);

struct Running {
    /// Keeps the address from being used again while it is a key.
    _cell: Arc<EndpointHealth>,
    settings: Arc<CheckSettings>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a series of checks going for each endpoint that is to be checked.
async fn follow(health: &Health, prober: Rc<Prober>) {
    let mut changed = health.shared.changed.subscribe();
    let places = Arc::new(Semaphore::new(MAX_CONCURRENT));
    let mut running: HashMap<CheckKey, Running> = HashMap::new();
    loop {
        let mut wanted = HashMap::new();
        for service in health.services() {
            let members = lock(&service.members);
            let Some(settings) = members.settings.check.clone() else {
                continue;
            };
            for cell in &members.list {
                let key = (Arc::as_ptr(&service) as usize, Arc::as_ptr(cell) as usize);
                wanted.insert(
                    key,
                    (
                        Arc::downgrade(&service),
                        Arc::clone(cell),
                        Arc::clone(&settings),
                    ),
                );
            }
        }
        running.retain(|key, running| {
            wanted
                .get(key)
                .is_some_and(|(_, _, settings)| *running.settings == **settings)
        });
        for (key, (service, cell, settings)) in wanted {
            if running.contains_key(&key) || running.len() >= MAX_CHECKED {
                continue;
            }
            let series = Series {
                service,
                cell: Arc::clone(&cell),
                settings: Arc::clone(&settings),
                places: Arc::clone(&places),
                prober: Rc::clone(&prober),
            };
            let task = tokio::task::spawn_local(series.run()).abort_handle();
            running.insert(
                key,
                Running {
                    _cell: cell,
                    settings,
                    task,
                },
            );
        }
        // A service that no worker uses any more is noticed with the next change.
        let _ = changed.changed().await;
    }
}

/// The checks of one endpoint.
struct Series {
    service: Weak<ServiceHealth>,
    cell: Arc<EndpointHealth>,
    settings: Arc<CheckSettings>,
    places: Arc<Semaphore>,
    prober: Rc<Prober>,
}

impl Series {
    async fn run(self) {
        loop {
            let finding = {
                let Ok(_place) = self.places.acquire().await else {
                    return;
                };
                let check = self.prober.check(self.cell.desc(), &self.settings);
                let limit = self.settings.timeout;
                match tokio::time::timeout(limit, check).await {
                    Ok(finding) => finding,
                    Err(_) => Finding::NoAnswer(format!("no answer within {limit:?}")),
                }
            };
            let Some(service) = self.service.upgrade() else {
                return;
            };
            service.checked(&self.settings, &self.cell, &finding);
            drop(service);
            tokio::time::sleep(self.pause()).await;
        }
    }

    /// The interval, drawn within the jitter to both sides, so that proxies do not all check at once.
    fn pause(&self) -> Duration {
        let jitter = f64::from(self.settings.jitter_percent) / 100.0;
        let factor = 1.0 + rand::rng().random_range(-1.0..=1.0) * jitter;
        self.settings.interval.mul_f64(factor.max(0.05))
    }
}
