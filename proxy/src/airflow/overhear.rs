//! Listens to the Execution API's traffic as it goes by: a bounded copy of what says which task runs where.

use std::{
    cell::RefCell,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response,
    header::{AUTHORIZATION, CONTENT_ENCODING},
};
use tokio::sync::oneshot;

use super::{
    connection::ConnectionTask,
    execution_api::{Call, Event},
    lookup::Lookup,
    process::Pid,
    roots::Supervisor,
    run_response::{MAX_BODY_BYTES, Run, Unreadable, runner},
    socket::SocketPair,
};
use crate::{
    config::Secret,
    http::{Body, BodyEnd, BodyWatcher},
    telemetry::{TaskContext, metrics::TaskFact, trace::TraceParent},
};

/// Largest body of a request that is looked at.
const MAX_REQUEST_BYTES: usize = 4 * 1024;

/// Longest token that is kept. Airflow's have some 500 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Exchanges whose bodies are copied at once, by all workers: tasks that begin while no API server answers wait together.
const MAX_COPIES: usize = 256;

/// What was overheard of a task instance.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) ti_id: String,
    pub(super) news: News,
    pub(super) by: By,
    /// The service that is Airflow's API server has answered, by the mesh.
    pub(super) by_airflow: bool,
    /// The token that the process showed, where somebody wants it.
    pub(super) token: Option<Secret>,
    /// To whom it is said what it tells of a task that begins.
    pub(super) begun: Option<Box<Begun>>,
}

/// The connection that a task begins by.
#[derive(Debug)]
pub(super) struct Begun {
    /// The task that its processes show, if that is known already.
    pub(super) task: Option<TaskContext>,
    /// Takes the same with what Airflow has said of it; none where that is another run.
    pub(super) tell: oneshot::Sender<Option<TaskContext>>,
}

/// Who has asked.
#[derive(Debug)]
pub(super) enum By {
    /// The process, if it may be the supervisor of a task.
    Process(Option<Supervisor>),
    /// Whoever has this connection. To be found out before anything else is: what begins with the answer asks next.
    Connection(SocketPair),
}

/// Where an answer came from, and to whom.
#[derive(Clone)]
pub(crate) struct Answered {
    /// The service that is Airflow's API server has answered, by the mesh.
    pub(crate) by_airflow: bool,
    /// Whose connection it was.
    pub(crate) task: ConnectionTask,
}

/// What was heard, until it is known whom it was heard of.
struct Heard {
    lookup: Lookup,
    ti_id: String,
    news: News,
    token: Option<Secret>,
    tell: Option<oneshot::Sender<Option<TaskContext>>>,
}

impl Heard {
    fn report(self, by: &Answered) {
        self.lookup.report(Report {
            ti_id: self.ti_id,
            news: self.news,
            by: by.task.asked_by(),
            by_airflow: by.by_airflow,
            token: self.token,
            begun: self.tell.map(|tell| {
                let task = by.task.now().cloned();
                Box::new(Begun { task, tell })
            }),
        });
    }
}

#[derive(Debug)]
pub(super) enum News {
    Begins(Box<Bodies>),
    BelongsTo(TraceParent),
    Ends,
    IsThere,
}

#[cfg(test)]
impl News {
    /// A task begins of which nothing was understood.
    pub(super) fn begins_of_nothing() -> Self {
        Self::Begins(Box::new(Bodies {
            request: Copy::default(),
            response: Copy::default(),
            coding: None,
            _place: Place(Places::default()),
        }))
    }
}

/// A request to `/run` and its response.
pub(super) struct Bodies {
    request: Copy,
    response: Copy,
    coding: Option<Box<[u8]>>,
    _place: Place,
}

impl fmt::Debug for Bodies {
    /// A response may hold connections with their passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bodies").finish_non_exhaustive()
    }
}

impl Bodies {
    /// What the response says, and the number of the process that the request names.
    pub(super) fn read(&self) -> Result<(Run, Option<Pid>), Unreadable> {
        let response = &self.response;
        let run = Run::read(&response.bytes, response.is_cut, self.coding.as_deref())?;
        let pid = (!self.request.is_cut)
            .then(|| runner(&self.request.bytes).ok())
            .flatten();
        Ok((run, pid))
    }
}

/// The beginning of a body.
#[derive(Default)]
struct Copy {
    bytes: Vec<u8>,
    /// There was more.
    is_cut: bool,
}

impl Copy {
    /// Takes over what comes next, until there are `limit` bytes.
    fn add(&mut self, data: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len());
        self.is_cut |= data.len() > room;
        let taken = data.get(..room).unwrap_or(data);
        self.bytes.extend_from_slice(taken);
    }
}

/// Counts exchanges that are copied.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

/// One of them.
#[derive(Debug)]
struct Place(Places);

impl Places {
    fn take(&self) -> Option<Place> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        (before < MAX_COPIES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An exchange that is listened to.
pub(crate) struct Overheard {
    lookup: Lookup,
    ti_id: String,
    of: Of,
    token: Option<Secret>,
}

impl fmt::Debug for Overheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overheard")
            .field("ti_id", &self.ti_id)
            .finish_non_exhaustive()
    }
}

enum Of {
    Run(Rc<RequestCopy>, Place),
    Rendered(TraceParent),
    State,
    Other,
}

impl Overheard {
    /// Begins to listen to `request`; none where it says nothing. `parent` is what its client sent as `traceparent`. The
    /// token is kept where `wants_token`, for as long as something is held of the task.
    pub(crate) fn begin(
        lookup: &Lookup,
        call: &Call,
        request: &mut Request<Body>,
        parent: Option<TraceParent>,
        wants_token: bool,
    ) -> Option<Self> {
        let instance = call.instance.clone()?;
        let token = wants_token.then(|| token(request.headers())).flatten();
        let of = match instance.event {
            Event::Run => {
                let Some(place) = lookup.places().take() else {
                    lookup.count(TaskFact::Busy);
                    return None;
                };
                let copy = Rc::<RequestCopy>::default();
                let body = std::mem::take(request.body_mut());
                *request.body_mut() = body.watched(Rc::clone(&copy) as Rc<dyn BodyWatcher>);
                Of::Run(copy, place)
            }
            Event::Rendered => Of::Rendered(parent?),
            Event::State => Of::State,
            Event::Other => Of::Other,
        };
        Some(Self {
            lookup: lookup.clone(),
            ti_id: instance.ti_id,
            of,
            token,
        })
    }

    /// Goes on with the response, which is given back with the same bytes.
    pub(crate) fn answered(self, response: Response<Body>, by: Answered) -> Response<Body> {
        if !response.status().is_success() {
            return response;
        }
        let news = match self.of {
            Of::Run(request, place) => {
                let tell = by.task.begins();
                let watcher = ResponseCopy {
                    coding: coding(response.headers()),
                    response: RefCell::default(),
                    by,
                    asked: RefCell::new(Some(Asked {
                        lookup: self.lookup,
                        ti_id: self.ti_id,
                        request,
                        token: self.token,
                        tell,
                        place,
                    })),
                };
                return response.map(|body| body.watched(Rc::new(watcher)));
            }
            Of::Rendered(parent) => News::BelongsTo(parent),
            Of::State => News::Ends,
            Of::Other => News::IsThere,
        };
        let heard = Heard {
            lookup: self.lookup,
            ti_id: self.ti_id,
            news,
            token: self.token,
            tell: None,
        };
        heard.report(&by);
        response
    }
}

/// The bearer's token of a request.
fn token(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let is_one =
        scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_TOKEN_BYTES).contains(&token.len());
    is_one.then(|| Secret::new(token))
}

fn coding(headers: &HeaderMap) -> Option<Box<[u8]>> {
    headers
        .get(CONTENT_ENCODING)
        .map(|coding| coding.as_bytes().into())
}

#[derive(Default)]
struct RequestCopy(RefCell<Copy>);

impl BodyWatcher for RequestCopy {
    fn data(&self, _: usize) {}

    fn piece(&self, data: &Bytes) {
        self.0.borrow_mut().add(data, MAX_REQUEST_BYTES);
    }

    fn end(&self, _: BodyEnd<'_>) {}
}

struct ResponseCopy {
    coding: Option<Box<[u8]>>,
    response: RefCell<Copy>,
    by: Answered,
    asked: RefCell<Option<Asked>>,
}

/// What was heard of an exchange before its response.
struct Asked {
    lookup: Lookup,
    ti_id: String,
    request: Rc<RequestCopy>,
    token: Option<Secret>,
    /// Says of the connection's task what is understood of it.
    tell: Option<oneshot::Sender<Option<TaskContext>>>,
    place: Place,
}

impl BodyWatcher for ResponseCopy {
    fn data(&self, _: usize) {}

    fn piece(&self, data: &Bytes) {
        self.response.borrow_mut().add(data, MAX_BODY_BYTES);
    }

    fn end(&self, end: BodyEnd<'_>) {
        if !matches!(end, BodyEnd::Complete) {
            return;
        }
        if let Some(asked) = self.asked.take() {
            let bodies = Bodies {
                request: asked.request.0.take(),
                response: self.response.take(),
                coding: self.coding.clone(),
                _place: asked.place,
            };
            let heard = Heard {
                lookup: asked.lookup,
                ti_id: asked.ti_id,
                news: News::Begins(Box::new(bodies)),
                token: asked.token,
                tell: asked.tell,
            };
            heard.report(&self.by);
        }
    }
}
