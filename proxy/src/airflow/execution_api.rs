//! What Airflow's Execution API says of the tasks whose requests the proxy carries, and which of its methods may be
//! repeated.
//!
//! Each task's supervisor tells the API server that the task runs (`PATCH …/task-instances/ID/run`), with the number of
//! the process, and is told its DAG, run and who triggered it. The proxy reads a bounded copy of both; it neither
//! delays nor changes them, and keeps no token.
//!
//! Whoever can send such a request through the proxy can have said anything: telemetry, and no evidence.

use http::{HeaderMap, Method, Request, header::USER_AGENT};

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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";

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
}
