//! What Airflow's Execution API says of the tasks whose requests the proxy carries, and which of its methods may be
//! repeated.
//!
//! Each task's supervisor tells the API server that the task runs (`PATCH …/task-instances/ID/run`), with the number of
//! the process, and is told its DAG, run and who triggered it. The proxy reads a bounded copy of both; it neither
//! delays nor changes them, and keeps no token.
//!
//! Whoever can send such a request through the proxy can have said anything: telemetry, and no evidence.

use std::io::Read;

use flate2::read::GzDecoder;
use http::{HeaderMap, Method, Request, header::USER_AGENT};
use serde::Deserialize;

/// Largest body of a response that is looked at, as it comes over the wire.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;

/// Largest body after it was unpacked.
const MAX_UNPACKED_BYTES: u64 = 256 * 1024;

/// Longest value that is kept.
const MAX_VALUE_BYTES: usize = 512;

/// Below this Airflow serves the API; it may stand behind a prefix.
const PREFIX: &str = "/execution/";

/// A request to the Execution API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The task instance that it names, if it does.
    pub(super) instance: Option<Instance>,
    /// Whether the server does with a repetition what it does with one request.
    pub(crate) repeatable: bool,
}

/// What a request says of a task instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) ti_id: String,
    pub(super) event: Event,
}

/// What becomes of a task instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It begins: the response says what it belongs to.
    Run,
    /// What was rendered is stored, just before the task's own code runs: carries the run's `traceparent`.
    Rendered,
    /// It has ended, or waits for something.
    State,
    /// Anything else: it is still there.
    Other,
}

impl Call {
    /// Reads a request of Airflow's client; none of another client, or for another API.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        // The common request is none of these, and costs the search for one header.
        is_client(request.headers()).then(|| Self::read(request.method(), request.uri().path()))?
    }

    /// Whether a task begins by it.
    pub(super) fn begins(&self) -> bool {
        (self.instance.as_ref()).is_some_and(|instance| instance.event == Event::Run)
    }

    /// Reads a method and a path; none for another API.
    pub(super) fn read(method: &Method, path: &str) -> Option<Self> {
        let (_, rest) = path.split_once(PREFIX)?;
        let mut segments = rest.split('/');
        let kind = segments.next()?;
        let id = segments
            .next()
            .and_then(|id| uuid::Uuid::try_parse(id).ok());
        let (action, more) = (segments.next(), segments.next());
        let instance = id.filter(|_| kind == "task-instances").map(|id| {
            let event = match (method.as_str(), action, more) {
                ("PATCH", Some("run"), None) => Event::Run,
                ("PUT", Some("rtif"), None) => Event::Rendered,
                ("PATCH", Some("state"), None) => Event::State,
                _ => Event::Other,
            };
            Instance {
                ti_id: id.to_string(),
                event,
            }
        });
        // What the server does with a repetition (Airflow 3.0 to 3.3). A DAG run that is triggered twice is an error, and
        // one that is cleared twice may run twice; whatever is not known is not repeated.
        let repeatable = match *method {
            Method::GET | Method::HEAD | Method::PUT | Method::DELETE => true,
            Method::POST => kind == "xcoms",
            Method::PATCH => {
                const PATCHES: [&str; 4] =
                    ["run", "state", "skip-downstream", "rendered-map-index"];
                let known = action.is_some_and(|action| PATCHES.contains(&action));
                instance.is_some() && known && more.is_none()
            }
            _ => false,
        };
        Some(Self {
            instance,
            repeatable,
        })
    }
}

/// Whether a client says that it is Airflow's own.
pub(super) fn is_client(headers: &HeaderMap) -> bool {
    headers.contains_key("airflow-api-version")
        || headers
            .get(USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"apache-airflow-task-sdk/"))
}

/// What the response to `/run` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) dag_id: String,
    pub(super) run_id: String,
    pub(super) run_type: Option<String>,
    pub(super) team: Option<String>,
    /// The person behind the run; inherited by runs that a task triggers.
    pub(super) triggered_by: Option<String>,
}

/// A body that is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// It claims a coding that is not read.
    #[error("its content coding is not gzip")]
    Coding,
    /// It claims gzip and is none.
    #[error("it is not gzip")]
    NotGzip,
    /// It is larger than such a body can be.
    #[error("it is too large")]
    TooLarge,
    /// It is not the JSON that Airflow sends.
    #[error("it is not JSON of the expected form")]
    Form,
}

#[derive(Deserialize)]
struct RunResponse {
    dag_run: DagRun,
}

#[derive(Deserialize)]
struct DagRun {
    dag_id: String,
    run_id: String,
    #[serde(default)]
    run_type: Option<String>,
    #[serde(default)]
    team_name: Option<String>,
    #[serde(default)]
    triggering_user_name: Option<String>,
}

#[derive(Deserialize)]
struct RunRequest {
    pid: u32,
}

impl Run {
    /// Reads the body of a response to `/run`.
    ///
    /// # Errors
    /// For one that is not what Airflow sends.
    pub(super) fn read(body: &[u8], content_encoding: Option<&[u8]>) -> Result<Self, Unreadable> {
        let unpacked = unpack(body, content_encoding)?;
        let response: RunResponse =
            serde_json::from_slice(&unpacked).map_err(|_| Unreadable::Form)?;
        let run = response.dag_run;
        let optional = [&run.run_type, &run.team_name, &run.triggering_user_name];
        let texts = [&run.dag_id, &run.run_id]
            .into_iter()
            .chain(optional.into_iter().flatten());
        for text in texts {
            if text.len() > MAX_VALUE_BYTES || text.contains(char::is_control) {
                return Err(Unreadable::Form);
            }
        }
        Ok(Self {
            dag_id: run.dag_id,
            run_id: run.run_id,
            run_type: run.run_type,
            team: run.team_name,
            triggered_by: run.triggering_user_name,
        })
    }
}

/// The number of the process that a task runs in, in the worker's PID namespace, from the body of a request to `/run`.
///
/// # Errors
/// For one that is not what Airflow sends.
pub(super) fn runner(body: &[u8]) -> Result<u32, Unreadable> {
    let unpacked = unpack(body, None)?;
    let request: RunRequest = serde_json::from_slice(&unpacked).map_err(|_| Unreadable::Form)?;
    Ok(request.pid)
}

fn unpack(body: &[u8], content_encoding: Option<&[u8]>) -> Result<Vec<u8>, Unreadable> {
    if body.len() > MAX_BODY_BYTES {
        return Err(Unreadable::TooLarge);
    }
    match content_encoding {
        None | Some(b"identity") => Ok(body.to_vec()),
        Some(b"gzip") => {
            let mut unpacked = Vec::new();
            // One byte more than allowed tells a body that is too large from one that just fits.
            GzDecoder::new(body)
                .take(MAX_UNPACKED_BYTES + 1)
                .read_to_end(&mut unpacked)
                .map_err(|_| Unreadable::NotGzip)?;
            if unpacked.len() as u64 > MAX_UNPACKED_BYTES {
                return Err(Unreadable::TooLarge);
            }
            Ok(unpacked)
        }
        Some(_) => Err(Unreadable::Coding),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const ID: &str = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn path(rest: &str) -> String {
        format!("/execution/task-instances/{ID}{rest}")
    }

    #[test]
    fn calls_are_told_apart_by_method_and_path() {
        let event = |method: Method, path: &str| {
            let instance = Call::read(&method, path)?.instance?;
            assert_eq!(instance.ti_id, ID);
            Some(instance.event)
        };
        for (method, path, expected) in [
            (Method::PATCH, path("/run"), Some(Event::Run)),
            (
                Method::PUT,
                format!("/airflow{}", path("/rtif")),
                Some(Event::Rendered),
            ),
            (Method::PATCH, path("/state"), Some(Event::State)),
            (Method::PUT, path("/heartbeat"), Some(Event::Other)),
            (Method::GET, path("/run"), Some(Event::Other)),
            (Method::PATCH, path("/run/more"), Some(Event::Other)),
            (Method::GET, path(""), Some(Event::Other)),
            (
                Method::PATCH,
                "/execution/task-instances/payroll/run".to_owned(),
                None,
            ),
            (Method::GET, "/execution/variables/x".to_owned(), None),
        ] {
            assert_eq!(event(method.clone(), &path), expected, "{method} {path}");
        }
        assert_eq!(Call::read(&Method::GET, "/api/v2/dags"), None);
    }

    #[test]
    fn what_the_server_takes_twice_is_repeatable_and_nothing_else() {
        for (method, path, repeatable) in [
            ("GET", "/execution/variables/x".to_owned(), true),
            ("GET", "/execution/connections/x".to_owned(), true),
            ("HEAD", "/execution/xcoms/d/r/t/k".to_owned(), true),
            ("POST", "/execution/xcoms/d/r/t/k".to_owned(), true),
            ("DELETE", "/execution/xcoms/d/r/t/k".to_owned(), true),
            ("PUT", "/execution/variables/x".to_owned(), true),
            ("PUT", path("/heartbeat"), true),
            ("PUT", path("/rtif"), true),
            ("PATCH", path("/run"), true),
            ("PATCH", path("/state"), true),
            ("PATCH", path("/skip-downstream"), true),
            ("PATCH", path("/rendered-map-index"), true),
            ("POST", "/execution/dag-runs/d/r".to_owned(), false),
            ("POST", "/execution/dag-runs/d/r/clear".to_owned(), false),
            ("POST", format!("/execution/hitlDetails/{ID}"), false),
            ("PATCH", format!("/execution/hitlDetails/{ID}"), false),
            ("PATCH", path("/anything-new"), false),
            ("PATCH", path("/run/more"), false),
            ("POST", path("/run"), false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let call = Call::read(&method, &path).unwrap();
            assert_eq!(call.repeatable, repeatable, "{method} {path}");
        }
    }

    #[test]
    fn airflows_client_is_known_by_its_version_header_or_its_name() {
        for (name, value, is) in [
            ("airflow-api-version", "2026-06-30", true),
            (
                "user-agent",
                "apache-airflow-task-sdk/1.3.2 (Python/3.11.7)",
                true,
            ),
            ("user-agent", "curl/8", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(is_client(&headers), is, "{name}: {value}");
        }
    }

    /// The form that Airflow 3.3.2 sends.
    const RESPONSE: &str = r#"{"dag_run":{"dag_id":"mesh_lab","run_id":"lab_1","logical_date":null,
        "run_type":"manual","conf":{},"team_name":null,"triggering_user_name":"ada"},
        "task_reschedule_count":0,"max_tries":1,"should_retry":true}"#;

    #[test]
    fn the_response_to_run_says_dag_run_and_person_packed_or_not() {
        let run = Run::read(RESPONSE.as_bytes(), None).unwrap();
        assert_eq!((&*run.dag_id, &*run.run_id), ("mesh_lab", "lab_1"));
        assert_eq!(run.triggered_by.as_deref(), Some("ada"));
        assert_eq!(run.team, None);
        assert_eq!(
            Run::read(&gzip(RESPONSE.as_bytes()), Some(b"gzip")),
            Ok(run)
        );
        assert_eq!(runner(br#"{"state":"running","pid":25388}"#), Ok(25388));
    }

    #[test]
    fn a_body_that_is_not_what_it_claims_is_passed_over() {
        let bomb = gzip(&vec![b' '; 1 << 20]);
        assert!(bomb.len() < MAX_BODY_BYTES);
        let huge = format!(
            r#"{{"dag_run":{{"dag_id":"{}","run_id":"r"}}}}"#,
            "x".repeat(2000)
        );
        for (body, coding, verdict) in [
            (
                RESPONSE.as_bytes(),
                Some(b"gzip".as_slice()),
                Unreadable::NotGzip,
            ),
            (&bomb, Some(b"gzip"), Unreadable::TooLarge),
            (&[b' '; MAX_BODY_BYTES + 1], None, Unreadable::TooLarge),
            (RESPONSE.as_bytes(), Some(b"br"), Unreadable::Coding),
            (b"[]", None, Unreadable::Form),
            (huge.as_bytes(), None, Unreadable::Form),
            (
                br#"{"dag_run":{"dag_id":"a\u0000","run_id":"r"}}"#,
                None,
                Unreadable::Form,
            ),
            (b"", None, Unreadable::Form),
        ] {
            assert_eq!(Run::read(body, coding), Err(verdict));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_is_too_odd_to_be_read(body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = Run::read(&body, Some(b"gzip"));
            let _ = Run::read(&body, None);
            let _ = runner(&body);
        }
    }
}
