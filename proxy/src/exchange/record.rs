//! The record that an exchange ends in: once, whatever became of it.

use std::time::Duration;

use http::HeaderValue;
use sidewind_identity::SpiffeId;
use tokio::task::spawn_local;

use super::Exchange;
use crate::telemetry::{Peer, RequestRecord};

/// How long a record waits for what is being said of its task: many times what that takes.
const TELLING_TIME: Duration = Duration::from_secs(1);

impl Exchange {
    /// Ends in being dropped, before something that was to come.
    pub(super) fn cut_off(&self, before: &str) {
        let error = self.telemetry.cut_off();
        self.fail(error.code(), || {
            format!("{} That was before {before}.", error.message())
        });
    }

    /// Ends it. Where Airflow has just said of its task what is not known by now, the record waits for that.
    pub(super) fn record(&self) {
        if self.took.get().is_none() {
            self.took.set(Some(self.started.elapsed()));
            drop(self.lease.take());
            drop(self.pick.take());
            drop(self.places.take());
            if self.task.borrow().is_being_told()
                && let Some(this) = self.this.upgrade()
            {
                spawn_local(async move {
                    this.task().within(TELLING_TIME).await;
                    this.write_record();
                });
                return;
            }
        }
        self.write_record();
    }

    fn write_record(&self) {
        if self.recorded.replace(true) {
            return;
        }
        let error = self.error.borrow();
        let destination = self.destination.borrow();
        let task = self.task.borrow();
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        let authority = self.uri.authority().map(|authority| authority.as_str());
        let source = Peer {
            address: self.source.address,
            spiffe_id: (self.caller.get())
                .or(self.source.id.as_ref())
                .map(SpiffeId::as_str),
        };
        let record = RequestRecord {
            started: self.started_at,
            duration: self.took.get().unwrap_or_default(),
            path: self.uri.path_and_query().map_or("", |path| path.as_str()),
            authority: authority.or(host).unwrap_or_default(),
            status: self.status.get(),
            grpc_status: self.grpc_status.get(),
            error: error.as_ref().map(|(code, _)| *code),
            error_detail: error.as_ref().map(|(_, detail)| detail.as_str()),
            service: self.service.get().map_or("", |service| service),
            endpoint: self.endpoint.get(),
            source,
            destination: destination.as_peer(),
            tls: self.tls.get(),
            attempts: self.attempts.get(),
            failed_attempts: &self.failed_attempts.borrow(),
            route: self.route.get().map_or("", |route| route),
            request_bytes: self.request_bytes.get(),
            response_bytes: self.response_bytes.get(),
            trace: Some(self.trace.get()),
            tracestate: self
                .tracestate
                .as_ref()
                .and_then(|state| state.to_str().ok()),
            user_agent: self.user_agent.as_ref().map(HeaderValue::as_bytes),
            task: task.now(),
            task_unknown: task.unknown(),
            ..RequestRecord::new(self.direction, self.protocol, &self.method)
        };
        self.telemetry.finish_request(&record);
    }
}

impl Drop for Exchange {
    /// Before a response the last to hold the exchange is the stage in which the request was dropped, and after
    /// an upgrade the relay of its bytes.
    fn drop(&mut self) {
        if self.status.get().is_none() {
            self.cut_off("the response began");
        }
        self.record();
    }
}
