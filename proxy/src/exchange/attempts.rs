//! The attempts that a request took: which of them failed, and which of two at once is answered.

use std::{net::SocketAddr, time::Duration};

use sidewind_identity::SpiffeId;

use super::{Exchange, Party, StreamPlace};
use crate::{
    errors::{ErrorCode, ProxyError},
    retry::{Failed, RetryObserver},
    telemetry::{
        Direction, FailedAttempt, TaskContext,
        logs::Throttle,
        metrics::{HoldOutcome, RetryOutcome, RetryReason},
    },
};

impl Exchange {
    /// Notes that the request is sent to `endpoint`, whose proxy proved `id`, or in plaintext without one.
    pub(crate) fn sent_to(&self, endpoint: SocketAddr, id: Option<&SpiffeId>) {
        if self.attempts.replace(self.attempts.get() + 1) > 0 {
            self.attempt_began.set(self.started.elapsed());
        }
        self.endpoint.set(Some(endpoint));
        if self.direction != Direction::Inbound {
            self.tls.set(id.is_some());
            self.went_in_plain
                .set(self.went_in_plain.get() || id.is_none());
            *self.destination.borrow_mut() = Party {
                address: Some(endpoint),
                id: id.cloned(),
            };
        }
    }

    /// Notes as whom the request is sent.
    pub(crate) fn sent_as(&self, id: &SpiffeId) {
        if self.source.id.as_ref() != Some(id) {
            let _ = self.caller.set(id.clone());
        }
    }

    /// Whether every proxy that the request was sent to has proved who it is.
    pub(crate) fn went_by_mesh(&self) -> bool {
        self.tls.get() && !self.went_in_plain.get()
    }

    /// Lays a failure where it belongs: when the request's own body broke off, no endpoint is to blame for what became
    /// of the request.
    pub(crate) fn blame(&self, error: ProxyError) -> ProxyError {
        match self.broken_request.get() {
            Some(ErrorCode::BadRequest) => {
                let message = "The request was refused: its body is not as it must be.";
                ProxyError::new(ErrorCode::BadRequest, message).with_source(error)
            }
            Some(code) => ProxyError::new(code, code.doc()).with_source(error),
            None => error,
        }
    }

    /// Notes that a request of Airflow's own was answered after all, if it took more than one try.
    pub(crate) fn note_if_saved(&self) {
        static SAVED: Throttle = Throttle::new();
        let attempts = self.attempts.get();
        if attempts < 2 || self.failed_attempts.borrow().is_empty() {
            return;
        }
        let task = self.task.borrow();
        let task = task.now();
        self.telemetry.metrics().task_saved(task);
        if let Some(suppressed) = SAVED.admit() {
            let nobody = TaskContext::default();
            let task = task.unwrap_or(&nobody);
            tracing::info!(
                dag_id = task.dag_id,
                task_id = task.task_id,
                run_id = task.run_id,
                path = self.uri.path(),
                attempts,
                waited = ?self.started.elapsed(),
                suppressed,
                "a request to Airflow's API server got through after an outage"
            );
        }
    }

    fn note_failed(&self, endpoint: Option<SocketAddr>, failed: Failed, began: Duration) {
        let mut attempts = self.failed_attempts.borrow_mut();
        if attempts.len() < MAX_FAILED_ATTEMPTS {
            attempts.push(FailedAttempt {
                endpoint,
                failed,
                began,
                duration: self.started.elapsed().saturating_sub(began),
            });
        }
    }

    fn note_retry(&self, failed: Failed, outcome: RetryOutcome) {
        let reason = match failed {
            Failed::Response(_, Some(_)) => RetryReason::GrpcStatus,
            Failed::Response(_, None) => RetryReason::Status,
            Failed::Error(_) => RetryReason::ConnectFailed,
        };
        let destination = self.destination.borrow();
        let peer = destination.id.as_ref().map(SpiffeId::as_str);
        let service = self.service.get().map_or("", |service| service);
        self.telemetry
            .metrics()
            .request_handles(self.direction, service, peer, self.tls.get())
            .retry(reason, outcome);
    }
}

/// How many failed attempts of one request are written down; the rest is counted.
const MAX_FAILED_ATTEMPTS: usize = 16;

impl RetryObserver for Exchange {
    fn retried(&self, failed: Failed) {
        tracing::debug!(
            attempt = self.attempts.get(),
            ?failed,
            "a request is tried again"
        );
        self.note_failed(self.endpoint.get(), failed, self.attempt_began.get());
        self.note_retry(failed, RetryOutcome::Retried);
    }

    fn budget_exhausted(&self, failed: Failed) {
        self.note_retry(failed, RetryOutcome::BudgetExhausted);
    }

    fn held(&self, has_place: bool) {
        let service = self.service.get().map_or("", |service| service);
        let outcome = match has_place {
            true => HoldOutcome::Held,
            false => HoldOutcome::Refused,
        };
        self.telemetry.metrics().held(service, outcome);
    }

    fn second_begins(&self) {
        *self.first.borrow_mut() = Some(FirstAttempt {
            endpoint: self.endpoint.get(),
            destination: self.destination.borrow().clone(),
            tls: self.tls.get(),
            began: self.attempt_began.get(),
            lease: self.lease.take(),
        });
    }

    fn settled(&self, other: Failed, first_counts: bool) {
        let Some(first) = self.first.take() else {
            return;
        };
        self.note_retry(other, RetryOutcome::Retried);
        if !first_counts {
            return self.note_failed(first.endpoint, other, first.began);
        }
        self.endpoint.set(first.endpoint);
        *self.destination.borrow_mut() = first.destination;
        self.tls.set(first.tls);
        self.attempt_began.set(first.began);
        *self.lease.borrow_mut() = first.lease;
    }
}

/// What is known of an attempt beside which another one has begun.
#[derive(Debug)]
pub(super) struct FirstAttempt {
    endpoint: Option<SocketAddr>,
    destination: Party,
    tls: bool,
    began: Duration,
    lease: Option<StreamPlace>,
}
