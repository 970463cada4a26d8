//! A client of Airflow's REST API (version 3), as people and scripts outside the mesh use it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::settings::USER;
use crate::http::{Reply, Request};
use crate::place::Place;
use crate::wait::eventually;

/// Who has logged in.
#[derive(Clone, Debug)]
pub struct Rest {
    place: Place,
    address: SocketAddr,
    token: String,
}

impl Rest {
    /// Logs in, as soon as a server answers.
    ///
    /// # Panics
    /// When none lets the user in within `patience`.
    #[track_caller]
    pub fn login(place: &Place, address: SocketAddr, patience: Duration) -> Self {
        let (user, password) = USER;
        let body = json!({ "username": user, "password": password });
        let mut last = String::new();
        let answer = crate::wait::within(patience, || {
            let login = Request::new("POST", address, "/auth/token")
                .header("content-type", "application/json")
                .body(body.to_string());
            match login.try_send(place) {
                Ok(reply) if reply.status == 201 => Some(reply),
                Ok(reply) => {
                    last = format!("{} {}", reply.status, reply.text());
                    None
                }
                Err(error) => {
                    last = error;
                    None
                }
            }
        });
        let answer = answer.unwrap_or_else(|| panic!("nobody lets {user} in: {last}"));
        Self {
            place: place.clone(),
            address,
            token: answer.json()["access_token"]
                .as_str()
                .expect("a token")
                .to_owned(),
        }
    }

    fn request(&self, method: &str, path: &str) -> Request {
        Request::new(method, self.address, path)
            .header("authorization", format!("Bearer {}", self.token))
    }

    /// Any request without a body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path).send(&self.place)
    }

    /// Sends a JSON object.
    ///
    /// # Panics
    /// When the answer is no success.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let request = self
            .request("POST", path)
            .header("content-type", "application/json")
            .body(body.to_string());
        let reply = request.send(&self.place);
        assert!(
            (200..300).contains(&reply.status),
            "POST {path}: {} {}",
            reply.status,
            reply.text()
        );
        reply.json()
    }

    /// Begins a run of a DAG, as soon as the DAG is known.
    ///
    /// # Panics
    /// When it is not within `patience`.
    #[track_caller]
    pub fn trigger(&self, dag_id: &str, run_id: &str, patience: Duration) {
        let dag = format!("/api/v2/dags/{dag_id}");
        eventually(&format!("the DAG {dag_id} is known"), patience, || {
            (self.get(&dag).status == 200).then_some(())
        });
        self.post(
            &format!("{dag}/dagRuns"),
            &json!({ "dag_run_id": run_id, "logical_date": null }),
        );
    }

    /// The log of one try of a task, as the API server fetches it from the worker.
    #[track_caller]
    pub fn task_log(&self, dag_id: &str, run_id: &str, task_id: &str) -> Reply {
        self.get(&format!(
            "/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        ))
    }
}
