//! What a worker does for Airflow's tasks: who they are, as whom they go, and how long their requests wait.

use std::sync::Arc;

use http::Request;
use sidewind_identity::{SpiffeId, TaskId};
use tokio::time::Instant;

use super::Worker;
use crate::{
    airflow::{Answered, ConnectionTask, ExecutionCall, Overheard, SocketPair},
    control::{MeshIdentity, TaskTerms},
    errors::ProxyError,
    exchange::Exchange,
    http::Body,
};

impl Worker {
    /// The Airflow task behind a connection of the workload, as its own socket sees it, as far as it becomes known.
    pub(crate) fn task_of(&self, socket: SocketPair) -> ConnectionTask {
        match &self.tasks {
            Some(tasks) => ConnectionTask::ask(tasks, socket),
            None => ConnectionTask::default(),
        }
    }

    /// Until when a request to the Execution API is held that cannot be answered; none where none is.
    pub(crate) fn held_until(&self, exchange: &Exchange) -> Option<Instant> {
        let hold = self.config.airflow.hold;
        (!hold.is_zero()).then(|| exchange.started() + hold)
    }

    /// Listens to what a request to the Execution API says of a task, where somebody wants to know. `service` is the one
    /// that it is for.
    pub(crate) fn overhear(
        &self,
        call: &ExecutionCall,
        service: Option<&str>,
        exchange: &Exchange,
        request: &mut Request<Body>,
    ) -> Option<Overheard> {
        let tasks = self.tasks.as_ref()?;
        let named = &self.config.airflow.execution_api;
        let is_named = |service| named.iter().any(|name| name == service);
        if !named.is_empty() && !service.is_some_and(is_named) {
            let service = service.unwrap_or("a service outside the mesh");
            tasks.pass_over(call, service);
            return None;
        }
        let wants_token = self.task_terms().is_some_and(|terms| terms.needs_token);
        let parent = exchange.received_parent();
        Overheard::begin(tasks, call, request, parent, wants_token)
    }

    /// Where the answer to a request to the Execution API came from.
    pub(crate) fn answered_by(&self, exchange: &Exchange) -> Answered {
        // Which service answers is compared where it is listened to.
        Answered {
            by_airflow: self.task_terms().is_some() && exchange.went_by_mesh(),
            task: exchange.task(),
        }
    }

    /// What the workload's tasks may have; none where they go as the workload.
    fn task_terms(&self) -> Option<TaskTerms> {
        self.callers.as_ref()?;
        self.identity.borrow().as_ref()?.tasks
    }

    /// As whom a connection of the workload goes into the mesh: as its task, where tasks have identities, else as the
    /// workload.
    pub(crate) async fn caller(
        &self,
        task: &ConnectionTask,
    ) -> Result<Arc<MeshIdentity>, ProxyError> {
        let own = self.wait_for_identity().await?;
        match (&self.callers, own.tasks) {
            (Some(callers), Some(terms)) => callers.of(task, own, terms).await,
            _ => Ok(own),
        }
    }

    /// Whether a peer is believed when it says which task a request comes from: by its registration, or by this proxy's
    /// own configuration.
    pub(crate) fn believes_tasks_of(&self, peer: Option<&SpiffeId>) -> bool {
        let patterns = &self.config.airflow.context_from;
        let policy = self.inbound_policy().ok();
        let is_named = |id: &SpiffeId| {
            patterns.iter().any(|pattern| pattern.matches(id))
                || policy.as_ref().is_some_and(|it| it.believes_tasks_of(id))
        };
        // Whoever is believed about its tasks is so when they have identities of their own.
        peer.is_some_and(|peer| {
            is_named(peer) || TaskId::of(peer).is_some_and(|task| is_named(&task.worker))
        })
    }
}
