//! Reads resources again on change. A bad new version never replaces a good running one.

use super::{Config, ConfigErrors, Expectations, LifetimeCheck, document};
use crate::telemetry::Metrics;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the content is read. By content and not by notification: file systems differ in what they
/// notify of, and mounted volumes are replaced as a whole.
const INTERVAL: Duration = Duration::from_millis(500);

/// What a directory held at one time: all its files, or why they could not be read.
type Content = Result<Vec<document::SourceFile>, ConfigErrors>;

/// Watches a directory of resources.
#[derive(Debug)]
pub struct Watcher {
    directory: PathBuf,
    expectations: Expectations,
    /// What was last judged.
    judged: Content,
    /// What was read last.
    seen: Content,
}

/// What a look at the directory brought.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Same,
    /// Something new, which may still be being written.
    Settling,
    /// New resources.
    New(Box<Config>),
    /// New resources that are wrong.
    Refused(ConfigErrors),
}

impl Watcher {
    /// Reads a directory for the first time.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn open(
        directory: &Path,
        expectations: Expectations,
    ) -> Result<(Self, Config), ConfigErrors> {
        let files = document::read_directory(directory)?;
        let config = Config::parse_for(&files, &expectations)?;
        let watcher = Self {
            directory: directory.to_owned(),
            expectations,
            seen: Ok(files.clone()),
            judged: Ok(files),
        };
        Ok((watcher, config))
    }

    /// Holds lifetimes against an authority from now on, those of the resources in use first.
    ///
    /// # Errors
    /// Those that it cannot honour.
    pub fn expect_lifetimes(&mut self, check: LifetimeCheck) -> Result<(), ConfigErrors> {
        self.expectations.lifetime = Some(check);
        let files = self.judged.as_ref().map_err(Clone::clone)?;
        Config::parse_for(files, &self.expectations).map(drop)
    }

    /// Reads the directory again. What is new is judged when two looks have found the same: half of a file
    /// that is being written can be a valid file with half of its rules.
    pub fn look(&mut self) -> Look {
        let content = document::read_directory(&self.directory);
        let settled = content == self.seen;
        self.seen = content;
        if self.seen == self.judged {
            return Look::Same;
        }
        if !settled {
            return Look::Settling;
        }
        self.judged = self.seen.clone();
        match self
            .seen
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|files| Config::parse_for(files, &self.expectations))
        {
            Ok(config) => Look::New(Box::new(config)),
            Err(errors) => Look::Refused(errors),
        }
    }

    /// Looks again and again, and hands on what is new and right. Runs until dropped.
    pub async fn run(mut self, metrics: Arc<Metrics>, take: impl Fn(Config)) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let looked = tokio::task::spawn_blocking(move || {
                let look = self.look();
                (self, look)
            });
            // A look neither panics nor is cancelled; if it did, the resources in use stay so.
            let Ok((watcher, look)) = looked.await else {
                tracing::error!("the resources are no longer watched");
                return;
            };
            self = watcher;
            match look {
                Look::Same | Look::Settling => {}
                Look::New(config) => {
                    let counts = config.counts();
                    tracing::info!(
                        policies = counts.policies,
                        entries = counts.entries,
                        routes = counts.routes,
                        gateways = counts.gateways,
                        traffic_policies = counts.traffic_policies,
                        registrations = counts.registrations,
                        attestors = counts.attestors,
                        federated = counts.federated,
                        "resources changed"
                    );
                    take(*config);
                    metrics.count_config_reload(true);
                }
                Look::Refused(errors) => {
                    for error in &errors.0 {
                        tracing::error!(%error, "changed resources are refused; the old ones stay in use");
                    }
                    metrics.count_config_reload(false);
                }
            }
        }
    }
}
