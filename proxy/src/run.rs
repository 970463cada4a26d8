//! The process: one control thread (identity, control plane, admin, traces, signals) and the worker threads that
//! carry traffic, from start to drain.

use std::{
    process::ExitCode,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::{
    runtime::{Builder, LocalOptions},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    admin::{self, Admin, Component, Readiness},
    airflow,
    capture::{self, Peer},
    command::{Beside, End, Neighbours, Supervisor, run_beside},
    config::{self, Config, TrafficConfig},
    control::{self, Control},
    drain::{self, Drain, DrainTrigger},
    gateway::{self, Keeper, OpenPorts},
    health::{self, Health},
    limit::Limits,
    listen::{self, ListenError, ListenPlan},
    mesh::Proofs,
    outbound::Destinations,
    status,
    telemetry::{
        SharedTelemetry, Telemetry,
        access_log::{AccessLog, Destination},
        logs::{self, Chain, LogHandle},
        metrics::Metrics,
        trace::{self, SpanExporting, TraceResource},
    },
    worker::{Shared, Worker},
    workload_api::{self, WorkloadApi},
};

/// File descriptors for each connection: the client's and the endpoint's, and as many again for peers that dial.
const FILES_PER_CONNECTION: u64 = 4;

/// How long the last log lines and spans may take to get out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the proxy until it is told to stop, and gives back the process's exit code.
pub(crate) fn run(config: Config) -> ExitCode {
    let log = match logs::install(
        &config.telemetry.log_filter,
        match config.telemetry.log_format {
            config::LogFormat::Json => logs::LogFormat::Json,
            config::LogFormat::Text => logs::LogFormat::Text,
        },
    ) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    // The private key must not end in a core dump, nor be read by a debugger of the same user.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps stay allowed");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(serve(Arc::new(config), log)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&*error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    tracing::error!(error = %Chain(error), "the proxy cannot run");
    eprintln!("sidewind-proxy: {}", Chain(error));
    ExitCode::FAILURE
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Serves to the end; gives back the exit code.
async fn serve(config: Arc<Config>, log: LogHandle) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let mut supervisor = match &config.command {
        Some(_) => Some(Supervisor::new()?),
        None => None,
    };
    let neighbours = config.traffic.end_with_workload.then(Neighbours::new);
    let neighbours = neighbours.transpose()?;
    raise_file_limit(&config);
    let (telemetry, spans) = start_telemetry(&config)?;
    let (control, control_work) = control::new(&config)?;
    let (trigger, drain) = drain::drain();
    let shutdown = Arc::new(Notify::new());
    let readiness = Readiness::default();

    let health = Health::new(Some(Arc::clone(&telemetry.metrics)));
    let keeper = gateway_keeper(&config, &readiness, &telemetry);
    let shared = Shared {
        health: health.clone(),
        limits: Limits::new(Some(Arc::clone(&telemetry.metrics))),
        tasks: start_task_lookup(&config, &telemetry.metrics, &readiness)?,
    };
    let gateway_ports = keeper.as_ref().map(Keeper::ports);
    let of_all = (&shared, gateway_ports.as_ref());
    let workers = Workers::start(&config, &control, &telemetry, &drain, of_all)?;
    let checks = tokio::spawn(health::check::start_when_wanted(
        health.clone(),
        Arc::clone(&config),
        control.clone(),
    ));
    let workload_api = start_workload_api(&config, &control, &telemetry.metrics)?;
    let tasks = shared.tasks.as_ref().map(|it| it.open().clone());
    let shown = Shown {
        health,
        tasks: tasks.unwrap_or_default(),
    };
    let admin = start_admin(&config, &telemetry, &readiness, log, &shutdown, shown)?;
    // Not before the last of them is open, the admin port among them. A gateway's keeper speaks for its ports itself.
    match keeper {
        None => readiness.set(Component::Listeners, true, ""),
        Some(keeper) => drop(tokio::spawn(keeper.run(control.gateway.clone()))),
    }
    let following = tokio::spawn(status::follow(
        control.clone(),
        readiness.clone(),
        Arc::clone(&telemetry.metrics),
    ));
    let control_task = tokio::spawn(control_work);
    tracing::info!(
        version = control::VERSION,
        workload = config.workload.name,
        workers = config.limits.workers,
        "the proxy has started"
    );

    let begin_drain = || {
        readiness.set_draining();
        control.withdraw();
        trigger.begin();
    };
    let code = match (&config.command, &mut supervisor) {
        (Some(command), Some(supervisor)) => {
            let beside = Beside {
                readiness: &readiness,
                shutdown: &shutdown,
                on_hangup: || telemetry.access_log.reopen(),
                begin_drain,
            };
            let End { code } = run_beside(command, supervisor, beside).await;
            // The workload is gone; what it has left running gets the grace period, and no more.
            // Fresh: a signal that ended the command is no second one.
            let mut signals = Signals::new()?;
            drain_work(
                &trigger,
                &mut signals,
                config.traffic.drain_timeout,
                Duration::ZERO,
            )
            .await;
            code
        }
        _ => {
            let over = tokio::select! {
                () = signals.wait(&shutdown, &telemetry.access_log) => false,
                () = gone(neighbours) => true,
            };
            begin_drain();
            drain_for_workload(&trigger, &mut signals, &config.traffic, neighbours, over).await;
            0
        }
    };

    // The workload had it for as long as it was served at all.
    if let Some(workload_api) = workload_api {
        workload_api.stop();
    }
    workers.stop();
    stop_checks(checks).await;
    control_task.abort();
    following.abort();
    drop(admin);
    if let Some(spans) = spans {
        spans.shutdown(FLUSH_TIMEOUT).await;
    }
    telemetry.access_log.shutdown(FLUSH_TIMEOUT);
    tracing::info!("the proxy has stopped");
    Ok(code)
}

/// Ends the health checks, if any were wanted.
async fn stop_checks(checks: tokio::task::JoinHandle<std::io::Result<health::check::Checks>>) {
    checks.abort();
    if let Ok(Ok(checks)) = checks.await {
        checks.stop();
    }
}

/// What keeps the ports of a gateway.
fn gateway_keeper(
    config: &Config,
    readiness: &Readiness,
    telemetry: &SharedTelemetry,
) -> Option<Keeper> {
    let listen = config.gateway.listen.clone()?;
    let workers = config.limits.workers.get();
    let metrics = Arc::clone(&telemetry.metrics);
    Some(Keeper::new(listen, workers, readiness.clone(), metrics))
}

/// Ends when the processes beside this one have ended; never where they are not looked at.
async fn gone(neighbours: Option<Neighbours>) {
    match neighbours {
        Some(neighbours) => {
            neighbours.gone().await;
            tracing::info!("the workload's processes have ended, and with them its sidecar");
        }
        None => std::future::pending().await,
    }
}

/// Ends when nothing of the workload is left after SIGTERM; never where its processes are not looked at.
async fn ended(neighbours: Option<Neighbours>) {
    match neighbours {
        Some(neighbours) => neighbours.ended().await,
        None => std::future::pending().await,
    }
}

/// Drains until the workload is gone, as far as that can be seen; `over` says that it is.
async fn drain_for_workload(
    trigger: &DrainTrigger,
    signals: &mut Signals,
    traffic: &TrafficConfig,
    neighbours: Option<Neighbours>,
    over: bool,
) {
    let grace = traffic.drain_timeout;
    let quiet = match neighbours {
        Some(_) => grace,
        None => traffic.drain_quiet,
    };
    let left = Instant::now() + grace;
    if !over {
        tokio::select! {
            () = drain_work(trigger, signals, grace, quiet) => return,
            () = ended(neighbours) => {}
        }
    }
    let left = left.saturating_duration_since(Instant::now());
    drain_work(trigger, signals, left, Duration::ZERO).await;
}

/// Waits for the drain, unless a second signal cuts it short.
async fn drain_work(
    trigger: &DrainTrigger,
    signals: &mut Signals,
    grace: Duration,
    quiet: Duration,
) {
    tracing::info!(
        ?grace,
        "draining: inbound ends what it has accepted, outbound goes on for the workload"
    );
    tokio::select! {
        left = trigger.run(grace, quiet) => {
            if left > 0 {
                tracing::warn!(left, "the grace period is over with connections still open");
            }
        }
        () = signals.stop() => tracing::warn!("a second signal ended the drain"),
    }
}

fn raise_file_limit(config: &Config) {
    let listeners = 8;
    let wanted = config.limits.max_connections as u64 * FILES_PER_CONNECTION * listeners / 4;
    match capture::raise_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => tracing::debug!(
            limit,
            wanted,
            "the limit of open files is below what all listeners together may need"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
}

fn start_telemetry(config: &Config) -> Result<(SharedTelemetry, Option<SpanExporting>), Failure> {
    let settings = &config.telemetry;
    let metrics = Arc::new(Metrics::new());
    let destination = match &settings.access_log {
        config::AccessLog::Stdout => Destination::Stdout,
        config::AccessLog::Off => Destination::Off,
        config::AccessLog::File(path) => Destination::File(path.clone()),
    };
    let access_log = AccessLog::start(destination, false, &metrics)?;
    let (queue, exporting) = match &settings.trace_endpoint {
        None => (None, None),
        Some(endpoint) => {
            let resource = TraceResource {
                workload_name: config.workload.name.clone(),
                otel_service_name: std::env::var("OTEL_SERVICE_NAME").ok(),
            };
            let (queue, exporting) = trace::start_export(endpoint, resource, Arc::clone(&metrics))?;
            (Some(queue), Some(exporting))
        }
    };
    let telemetry = SharedTelemetry {
        metrics,
        access_log,
        spans: queue,
        trace_ratio: settings.trace_ratio,
    };
    Ok((telemetry, exporting))
}

/// Starts what finds the Airflow tasks behind connections, where that is wanted.
fn start_task_lookup(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
) -> Result<Option<airflow::Lookup>, Failure> {
    let source = config.airflow.lookup.clone();
    Ok(source
        .map(|source| airflow::Lookup::start(source, metrics, readiness))
        .transpose()?)
}

/// Opens the Workload API socket, if there is to be one.
fn start_workload_api(
    config: &Config,
    control: &Control,
    metrics: &Arc<Metrics>,
) -> Result<Option<WorkloadApi>, workload_api::StartError> {
    let config = config.workload_api.as_ref();
    config
        .map(|config| workload_api::start(config, control, metrics))
        .transpose()
}

/// What the admin port shows of the data path.
struct Shown {
    health: Health,
    tasks: airflow::OpenTasks,
}

/// Opens the admin port. Dropping what is given back closes it.
fn start_admin(
    config: &Arc<Config>,
    telemetry: &SharedTelemetry,
    readiness: &Readiness,
    log: LogHandle,
    shutdown: &Arc<Notify>,
    state: Shown,
) -> Result<JoinSet<()>, Failure> {
    let Shown { health, tasks } = state;
    let (shutdown, shown) = (Arc::clone(shutdown), Arc::clone(config));
    let admin = Arc::new(Admin {
        readiness: readiness.clone(),
        metrics: Arc::clone(&telemetry.metrics),
        logs: log,
        shutdown: Box::new(move || shutdown.notify_one()),
        config: Box::new(move || status::shown_config(&shown)),
        endpoints: Box::new(move || health.report()),
        tasks: Box::new(move || tasks.report()),
    });
    let mut serving = JoinSet::new();
    for address in &config.listeners.admin {
        listen::check_free(*address, Peer::Any)?;
        if let Some(listener) = listen::open(*address, Peer::Any)? {
            serving.spawn(admin::serve(listener, Arc::clone(&admin)));
        }
    }
    Ok(serving)
}

/// The threads that carry traffic.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Workers {
    /// Starts the threads and waits until each has its listeners.
    fn start(
        config: &Arc<Config>,
        control: &Control,
        telemetry: &SharedTelemetry,
        drain: &Drain,
        (shared, gateway_ports): (&Shared, Option<&watch::Receiver<OpenPorts>>),
    ) -> Result<Self, Failure> {
        let plans = listen::plan(config);
        for plan in &plans {
            listen::check_free(plan.address, plan.peer())?;
        }
        let (stop, stopped) = watch::channel(false);
        let proofs = Proofs::default();
        let mut threads = Vec::new();
        for index in 0..config.limits.workers.get() {
            let (started, start) = mpsc::sync_channel(1);
            let thread = WorkerThread {
                index,
                config: Arc::clone(config),
                control: control.clone(),
                telemetry: telemetry.clone(),
                drain: drain.clone(),
                plans: plans.clone(),
                stopped: stopped.clone(),
                proofs: proofs.clone(),
                shared: shared.clone(),
                gateway_ports: gateway_ports.cloned(),
            };
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || thread.run(&started))?;
            start.recv()??;
            threads.push(handle);
        }
        Ok(Self { threads, stop })
    }

    fn stop(self) {
        self.stop.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

struct WorkerThread {
    index: usize,
    config: Arc<Config>,
    control: Control,
    telemetry: SharedTelemetry,
    drain: Drain,
    plans: Vec<ListenPlan>,
    stopped: watch::Receiver<bool>,
    proofs: Proofs,
    shared: Shared,
    /// None where the proxy is no gateway.
    gateway_ports: Option<watch::Receiver<OpenPorts>>,
}

type Started = mpsc::SyncSender<Result<(), Failure>>;

impl WorkerThread {
    fn run(self, started: &Started) {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(error.into()));
                return;
            }
        };
        let telemetry = Telemetry::new(&self.telemetry, self.index);
        runtime.block_on(self.work(started, &telemetry));
        // With the runtime go the connections that are still open, and each is recorded as it goes.
        telemetry.stop();
        drop(runtime);
        telemetry.flush();
    }

    async fn work(mut self, started: &Started, telemetry: &Telemetry) {
        let worker = Rc::new(Worker::new(
            Arc::clone(&self.config),
            &self.control,
            telemetry.clone(),
            self.drain.clone(),
            self.proofs.clone(),
            self.shared.clone(),
        ));
        if let Err(error) = self.listen(&worker) {
            let _ = started.send(Err(error.into()));
            return;
        }
        if let Some(ports) = self.gateway_ports.take() {
            let following = gateway::follow(Rc::clone(&worker), self.index, ports);
            tokio::task::spawn_local(following);
        }
        let _ = started.send(Ok(()));
        tokio::task::spawn_local(telemetry.clone().keep_flushing());
        tokio::task::spawn_local(worker.workload.sweeper());
        tokio::task::spawn_local(worker.endpoints.sweeper());
        tokio::task::spawn_local(Rc::clone(&worker).follow_identity());
        tokio::task::spawn_local(Rc::clone(&worker).watch_peers());
        tokio::task::spawn_local(Destinations::forget_unused(Rc::clone(&worker)));
        let watched = Rc::clone(&worker);
        tokio::task::spawn_local(async move { watched.overload.watch().await });
        tokio::task::spawn_local(Destinations::follow_health(Rc::clone(&worker)));
        // An error means that the control thread has gone, and the process with it.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }

    fn listen(&self, worker: &Rc<Worker>) -> Result<(), ListenError> {
        for plan in &self.plans {
            if let Some(listener) = listen::open(plan.address, plan.peer())? {
                tokio::task::spawn_local(listen::accept(Rc::clone(worker), plan.clone(), listener));
            }
        }
        Ok(())
    }
}

/// What the process is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM, SIGINT or `/shutdown`; on SIGHUP the access log is opened anew.
    async fn wait(&mut self, shutdown: &Notify, access_log: &AccessLog) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                () = shutdown.notified() => return,
                _ = self.hangup.recv() => access_log.reopen(),
            }
        }
    }

    /// Waits for another SIGTERM or SIGINT.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
