//! Which DAG may call what: tasks of one worker, each with an identity of its own.

use std::net::SocketAddr;
use std::time::SystemTime;

use http::Request;
use sidewind_identity::{SpiffeId, TaskId};
use sidewind_tests::authority::TestAuthority;
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{MESH_PORT, Mesh};
use sidewind_tests::peer::Peer;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::{API_ID, Pair, allow};

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";

/// An API that the tasks of DAG payroll may call, and a worker.
struct Story {
    pair: Pair,
    authority: TestAuthority,
    worker: Host,
}

impl Story {
    fn begin() -> Self {
        let authority = TestAuthority::new();
        let payroll = format!("{WORKER}/dag/payroll/task/*");
        let mesh = Mesh::plan()
            .root(&authority)
            .config("policy.yaml", &allow(API_ID, &[&payroll], ""));
        let mut pair = Pair::serving(mesh, "orders-api.data=8080/http");
        let worker = pair.mesh.outsider("worker");
        Self {
            pair,
            authority,
            worker,
        }
    }

    /// A call with an identity: its status, or none where there was no connection.
    fn call(&self, id: &str) -> Option<u16> {
        let name = id.trim_start_matches("spiffe://").replace('/', "-");
        let scratch = &self.pair.mesh.scratch;
        let svid = self
            .authority
            .svid_files(scratch, &name, id, SystemTime::now());
        let port = SocketAddr::from((self.pair.api.address, MESH_PORT));
        let peer = Peer::new(&self.worker.place, port, "sidewind/1").with(&svid);
        let request = Request::get("http://orders-api.data:8080/orders")
            .header("sidewind-destination", self.pair.api.at(8080).to_string())
            .body(())
            .unwrap();
        peer.ask(request, "").ok().map(|reply| reply.status)
    }

    fn call_of_task(&self, dag: &str, task: &str) -> Option<u16> {
        let worker = SpiffeId::parse(WORKER).unwrap();
        self.call(TaskId::derive(&worker, dag, task).unwrap().as_str())
    }

    fn ban(&self, id: &str) {
        let state = self.pair.mesh.control_plane.state();
        let command = self.pair.mesh.control_plane.command().args(["ban", id]);
        command.arg("--state-dir").arg(state).finish().success();
    }
}

#[test]
fn one_dag_may_call_a_service_and_another_on_the_same_worker_may_not() {
    let story = Story::begin();
    for (dag, task, status) in [
        ("payroll", "charge", 200),
        ("payroll", "group.check", 200),
        ("payroll", "..", 200),
        ("reports", "charge", 403),
        ("payroll2", "charge", 403),
        ("payroll/task/x", "charge", 403),
    ] {
        assert_eq!(story.call_of_task(dag, task), Some(status), "{dag} {task}");
    }
    assert_eq!(
        story.call(WORKER),
        Some(403),
        "the worker itself is no task"
    );
    let log = &story.pair.api.sidecar;
    let record = log.wait_for_access("the refusal", |record| record.status() == 403);
    assert_eq!(
        record.source_id(),
        format!("{WORKER}/dag/reports/task/charge")
    );
}

#[test]
fn a_ban_of_a_task_cuts_that_task_off_and_one_of_the_worker_all_of_them() {
    let story = Story::begin();
    story.ban(&format!("{WORKER}/dag/payroll/task/charge"));
    eventually("the task is cut off", PATIENCE, || {
        story
            .call_of_task("payroll", "charge")
            .is_none()
            .then_some(())
    });
    assert_eq!(story.call_of_task("payroll", "check"), Some(200));
    story.ban(WORKER);
    eventually("every task is cut off", PATIENCE, || {
        story
            .call_of_task("payroll", "check")
            .is_none()
            .then_some(())
    });
}
