//! A sidecar's process and its admin port.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use crate::access_log::AccessRecord;
use crate::http::{Reply, Request};
use crate::metrics::Metrics;
use crate::place::Place;
use crate::process::Process;
use crate::wait::{eventually, within};

/// `sidewind-proxy run`.
#[derive(Debug)]
pub struct Sidecar {
    place: Place,
    admin: SocketAddr,
    process: Process,
}

impl Sidecar {
    /// One whose process was started by the test itself.
    pub fn new(place: Place, admin: SocketAddr, process: Process) -> Self {
        Self {
            place,
            admin,
            process,
        }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log (not the access log).
    pub fn log(&self) -> String {
        self.process.errors()
    }

    /// Its admin port, as the host itself reaches it.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A request to its admin port from its own host.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        Request::get(self.admin, path).send(&self.place)
    }

    /// Any request to its admin port from its own host.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        Request::new(method, self.admin, path)
            .body(body.to_owned())
            .send(&self.place)
    }

    /// Whether `/ready` says so.
    pub fn is_ready(&self) -> bool {
        Request::get(self.admin, "/ready")
            .try_send(&self.place)
            .is_ok_and(|reply| reply.status == 200)
    }

    /// Waits for `/ready`.
    ///
    /// # Panics
    /// When it does not say so in time, or the process ends.
    #[track_caller]
    pub fn wait_ready(&mut self, patience: Duration) {
        let (place, admin) = (self.place.clone(), self.admin);
        let ready = || {
            Request::get(admin, "/ready")
                .try_send(&place)
                .is_ok_and(|reply| reply.status == 200)
        };
        self.process
            .wait_until("the sidecar is ready", patience, ready);
    }

    /// Its metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").text())
    }

    /// When its certificate expires, in seconds since 1970.
    #[track_caller]
    pub fn certificate_expiry(&self) -> f64 {
        let expiry = self
            .metrics()
            .value("sidewind_certificate_expiry_timestamp_seconds");
        expiry.expect("a sidecar that is ready has a certificate")
    }

    /// Its access log so far.
    pub fn access_log(&self) -> Vec<AccessRecord> {
        AccessRecord::all(&self.process.output())
    }

    /// Waits for a record that `matches`, and gives the first.
    ///
    /// # Panics
    /// When there is none in time; the message holds the last records.
    #[track_caller]
    pub fn wait_for_access(
        &self,
        what: &str,
        matches: impl Fn(&AccessRecord) -> bool,
    ) -> AccessRecord {
        let found = within(Duration::from_secs(10), || {
            self.access_log().into_iter().find(|record| matches(record))
        });
        found.unwrap_or_else(|| {
            let records = self.access_log();
            let last: Vec<String> = records
                .iter()
                .rev()
                .take(10)
                .map(ToString::to_string)
                .collect();
            panic!(
                "the access log has no record of {what}; its last ones:\n{}",
                last.join("\n")
            )
        })
    }

    /// Waits until its certificate expires later than `than`, and gives the new time.
    #[track_caller]
    pub fn wait_for_rotation(&self, than: f64, patience: Duration) -> f64 {
        eventually("the certificate is rotated", patience, || {
            Some(self.certificate_expiry()).filter(|expiry| *expiry > than)
        })
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }
}
