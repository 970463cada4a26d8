//! Airflow's processes, each on a machine of its own, and what a test does with them.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::faults::{Fault, Faulty};
use super::ground::{Gateway, Machine, MachinePlan, name_api_servers, share_out};
use super::settings::{
    API_PORT, CONNECTION_PASSWORD, DATABASE_PASSWORD, Executor, JWT_SECRET, REDIS_PASSWORD,
    environment, passwords,
};
use super::{Installed, Release, Rest};
use crate::access_log::AccessRecord;
use crate::invocation::Invocation;
use crate::mesh::{Mesh, SIDECAR_UID, Sidecar};
use crate::place::Place;
use crate::process::Process;
use crate::registered::Registered;
use crate::wait::{PATIENCE, eventually, within};
use crate::wire::{Recording, Wire};
use crate::workloads::{postgres_program, user_number};

/// How long Airflow may take to start on a machine that does other things too.
const START_PATIENCE: Duration = Duration::from_secs(150);

/// The port of API servers that stand behind faults.
const BEHIND_FAULTS: u16 = 18080;

const SERVICE: &str = include_str!("../../airflow/service.py");

/// Who is believed to say which task a call is of.
const TASKS: &str = "spiffe://sidewind.local/ns/airflow/sa/worker,spiffe://sidewind.local/ns/airflow/sa/triggerer,\
     spiffe://sidewind.local/ns/airflow/sa/scheduler";

/// What an Airflow is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct Plan {
    release: Release,
    executor: Executor,
    meshed: bool,
    api_servers: usize,
    concurrency: u32,
    dags: Vec<&'static str>,
    svid_ttl: Option<String>,
    trace_endpoint: Option<String>,
    recorded: bool,
    faulty: bool,
    patient: bool,
    plugin: bool,
    task_identities: bool,
    fork_server: bool,
}

impl Plan {
    /// Airflow 3.3 with Celery and two API servers, in a mesh, with these DAG files.
    pub fn celery(dags: &[&'static str]) -> Self {
        Self {
            release: Release::Three,
            executor: Executor::Celery,
            meshed: true,
            api_servers: 2,
            concurrency: 4,
            dags: dags.to_vec(),
            svid_ttl: None,
            trace_endpoint: None,
            recorded: false,
            faulty: false,
            patient: false,
            plugin: false,
            task_identities: false,
            fork_server: false,
        }
    }

    /// Airflow 3.3 whose scheduler runs the tasks, by what a fork server starts for it: the way of Python 3.14.
    pub fn local_by_fork_server(dags: &[&'static str]) -> Self {
        Self {
            executor: Executor::Local,
            api_servers: 1,
            fork_server: true,
            ..Self::celery(dags)
        }
    }

    /// Airflow 2.11 whose scheduler runs the tasks.
    pub fn two_local(dags: &[&'static str]) -> Self {
        Self {
            release: Release::Two,
            executor: Executor::Local,
            api_servers: 0,
            ..Self::celery(dags)
        }
    }

    /// How many tasks the worker runs at once.
    pub fn concurrency(mut self, tasks: u32) -> Self {
        self.concurrency = tasks;
        self
    }

    /// Has each task have an identity of its own, on the word of Airflow's tokens.
    pub fn task_identities(mut self) -> Self {
        self.task_identities = true;
        self
    }

    /// Has all certificates live this long.
    pub fn svid_ttl(mut self, ttl: &str) -> Self {
        self.svid_ttl = Some(ttl.to_owned());
        self
    }

    /// Records everything that passes between the machines, from before the first byte.
    pub fn recorded(mut self) -> Self {
        self.recorded = true;
        self
    }

    /// Has Airflow's client wait longer for answers than the 5 s of its default: what API servers may need that share two
    /// cores with sixteen tasks that all begin at once.
    pub fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// Has something of the test's own stand before each API server, so that faults can be had.
    pub fn with_faults(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// Has Airflow's plugin tell the sidecar of tasks, which has no privilege then.
    pub fn by_plugin(mut self) -> Self {
        self.plugin = true;
        self
    }

    /// The same without a mesh.
    pub fn unmeshed(mut self) -> Self {
        self.meshed = false;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When a step fails.
    #[track_caller]
    pub fn start(self) -> Deployment {
        Deployment::start(self, &mut |_| {})
    }

    /// As [`Plan::start`], and says what it does.
    ///
    /// # Panics
    /// When a step fails.
    #[track_caller]
    pub fn start_telling(self, tell: &mut dyn FnMut(&str)) -> Deployment {
        Deployment::start(self, tell)
    }
}

/// Puts the plugin where Python finds it, with what an installed package says of itself.
fn install_plugin(directory: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../airflow-plugin");
    let project = std::fs::read_to_string(source.join("pyproject.toml")).expect("the repository");
    let entry = project
        .lines()
        .find(|line| line.starts_with("sidewind = "))
        .expect("an entry point")
        .replace('"', "");
    let (package, about) = (
        directory.join("sidewind_airflow"),
        directory.join("sidewind_airflow-0.1.0.dist-info"),
    );
    for made in [directory, &package, &about] {
        std::fs::create_dir(made).expect("a directory of one's own");
    }
    let metadata = "Metadata-Version: 2.1\nName: sidewind-airflow\nVersion: 0.1.0\n";
    let entries = format!("[airflow.plugins]\n{entry}\n");
    std::fs::write(about.join("METADATA"), metadata).expect("a file of one's own");
    std::fs::write(about.join("entry_points.txt"), entries).expect("a file of one's own");
    for file in ["__init__.py", "listener.py", "plugin.py", "reporter.py"] {
        let from = source.join("sidewind_airflow").join(file);
        std::fs::copy(from, package.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// A running Airflow. Fields are dropped in this order.
#[derive(Debug)]
pub struct Deployment {
    processes: Vec<(String, Process)>,
    faulty: Vec<Faulty>,
    recording: Option<Recording>,
    gateway: Option<Gateway>,
    machines: Vec<Machine>,
    outside: crate::lan::Host,
    installed: Installed,
    shared: PathBuf,
    plan: Plan,
    /// The mesh under it, or the network alone.
    pub mesh: Mesh,
}

impl Deployment {
    #[track_caller]
    fn start(plan: Plan, tell: &mut dyn FnMut(&str)) -> Self {
        tell("Airflow from PyPI");
        let installed = Installed::find(plan.release);
        tell("the mesh");
        let mut mesh = super::ground::plan().start();
        let shared = mesh.scratch.directory("airflow", Some(Machine::uid()));
        let outside = mesh.outsider("people");
        let mut this = Self {
            processes: Vec::new(),
            faulty: Vec::new(),
            recording: plan.recorded.then(|| Recording::start(&mesh.lan_router())),
            gateway: None,
            machines: Vec::new(),
            outside,
            installed,
            shared,
            plan,
            mesh,
        };
        this.write_files();
        this.add_machines();
        tell("PostgreSQL, Redis and a service");
        this.start_postgres();
        this.start_redis();
        this.start_service();
        tell("Airflow's processes");
        this.start_airflow();
        this
    }

    fn write_files(&self) {
        let dags = self.shared.join("dags");
        std::fs::create_dir(&dags).expect("a directory of one's own");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("airflow/dags");
        for dag in &self.plan.dags {
            std::fs::copy(source.join(dag), dags.join(dag))
                .unwrap_or_else(|error| panic!("{dag}: {error}"));
        }
        let passwords_file = self.shared.join("passwords.json");
        std::fs::write(&passwords_file, passwords()).expect("a file of one's own");
        for path in [&dags, &passwords_file] {
            chown(path, Some(Machine::uid()), Some(Machine::uid())).expect("root gives files away");
        }
        if self.plan.plugin {
            install_plugin(&self.plugin());
        }
    }

    /// Where Airflow finds its plugin.
    fn plugin(&self) -> PathBuf {
        self.shared.join("plugin")
    }

    /// Where the plugin finds the sidecar.
    fn task_socket(&self) -> PathBuf {
        self.mesh.scratch.join("sidewind/task.sock")
    }

    /// Whose tasks are to be found: the worker's, or the scheduler's own.
    fn runs_tasks(&self, name: &str) -> bool {
        match self.plan.executor {
            Executor::Celery => name == "worker",
            Executor::Local => name == "scheduler",
        }
    }

    #[track_caller]
    fn add_machines(&mut self) {
        self.add("airflow", "postgres", &["postgres.airflow=5432/tcp"]);
        if self.plan.executor == Executor::Celery {
            self.add("airflow", "redis", &["redis.airflow=6379/tcp"]);
        }
        for number in 1..=self.plan.api_servers {
            let name = format!("api-server-{number}");
            self.add("airflow", &name, &["api-server.airflow=8080/http"]);
        }
        if self.plan.api_servers > 0 {
            name_api_servers(&mut self.mesh);
            if self.plan.meshed {
                self.gateway = Some(Gateway::start(&mut self.mesh));
            }
        }
        self.add("airflow", "scheduler", &["8793/http"]);
        if self.plan.release == Release::Three {
            self.add("airflow", "dag-processor", &[]);
            self.add("airflow", "triggerer", &["8794/http"]);
        }
        if self.plan.executor == Executor::Celery {
            self.add("airflow", "worker", &["8793/http"]);
        }
        if self.plan.api_servers > 0 && !self.plan.meshed {
            let servers = self.machines.iter();
            let servers = servers.filter(|machine| machine.name.starts_with("api-server"));
            let addresses: Vec<_> = servers.map(|machine| machine.address).collect();
            share_out(self.machine("worker"), &addresses);
        }
        self.add("data", "orders-api", &["orders-api.data=8000/http"]);
    }

    /// By what the worker proves itself whose tasks have identities: nothing of a join token lets them.
    #[track_caller]
    fn evidence(&self) -> Vec<String> {
        let secret = (self.mesh.scratch).write_secret("airflow-jwt-secret", JWT_SECRET, None);
        let registered = Registered {
            spiffe_id: "spiffe://sidewind.local/ns/airflow/sa/worker",
            services: &[],
            tasks: "{ airflow: production }",
            airflow_secret: &secret,
        };
        registered.flags(&self.mesh)
    }

    #[track_caller]
    fn add(&mut self, namespace: &str, name: &str, serves: &[&str]) {
        let identity = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        let looks = self.runs_tasks(name) && !self.plan.plugin;
        let mut flags = Vec::new();
        if self.runs_tasks(name) && self.plan.plugin {
            self.mesh.scratch.directory("sidewind", Some(SIDECAR_UID));
            flags.extend([
                ("--task-lookup", "plugin".to_owned()),
                ("--task-socket", self.task_socket().display().to_string()),
            ]);
        }
        if looks {
            let logs = self.home(name).join("logs").display().to_string();
            flags.extend([
                ("--task-lookup", "processes".to_owned()),
                ("--task-log-folder", logs),
            ]);
        }
        let mut evidence = Vec::new();
        if looks && self.plan.task_identities {
            evidence = self.evidence();
            flags.push(("--execution-api-service", "api-server.airflow".to_owned()));
        }
        if namespace == "data" {
            flags.push(("--task-context-from", TASKS.to_owned()));
        }
        if let Some(endpoint) = &self.plan.trace_endpoint {
            flags.push(("--trace-endpoint", endpoint.clone()));
            flags.push(("--trace-ratio", "1".to_owned()));
        }
        let ttl = self.plan.svid_ttl.clone();
        let plan = MachinePlan {
            namespace,
            name,
            identity,
            serves,
            flags,
            looks,
            svid_ttl: ttl.as_deref(),
            evidence: &evidence,
        };
        let machine = Machine::start(&mut self.mesh, self.plan.meshed, plan);
        self.machines.push(machine);
    }

    fn home(&self, name: &str) -> PathBuf {
        self.mesh.scratch.join(format!("home-{name}"))
    }

    #[track_caller]
    fn index(&self, name: &str) -> usize {
        let found = self.machines.iter().position(|it| it.name == name);
        found.unwrap_or_else(|| panic!("there is no machine {name}"))
    }

    /// A machine by its name: `postgres`, `redis`, `api-server-1`, `scheduler`, `dag-processor`, `triggerer`, `worker`,
    /// `orders-api`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn machine(&self, name: &str) -> &Machine {
        &self.machines[self.index(name)]
    }

    /// The same, to change it.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn machine_mut(&mut self, name: &str) -> &mut Machine {
        let index = self.index(name);
        &mut self.machines[index]
    }

    /// All machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The process of that name; a machine's Airflow component is called like the machine.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn process(&mut self, name: &str) -> &mut Process {
        let found = self.processes.iter_mut().find(|(it, _)| it == name);
        let found = found.unwrap_or_else(|| panic!("there is no process {name}"));
        &mut found.1
    }

    fn start_postgres(&mut self) {
        let place = self.machine("postgres").place.clone();
        let home = self
            .mesh
            .scratch
            .directory("home-postgres", Some(user_number("postgres")));
        let data = home.join("data");
        let copy = Place::Host.program("cp").arg("-a");
        let copy = copy.arg(self.installed.database()).arg(&data);
        copy.finish().success();
        let rules = "local all all trust\nhost all all 10.77.0.0/16 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).expect("the copy");
        let server = place
            .program(postgres_program("postgres"))
            .user(user_number("postgres"));
        let server = server.arg("-D").arg(&data).arg("-k").arg(&home);
        let server = server.args(["-c", "listen_addresses=*", "-c", "fsync=off"]);
        let process = server.start("postgres", &self.mesh.scratch);
        self.processes.push(("postgres".into(), process));
        let sql = format!("alter role airflow password '{DATABASE_PASSWORD}'");
        eventually("PostgreSQL answers", PATIENCE, || self.try_query(&sql).ok());
    }

    fn start_redis(&mut self) {
        if self.plan.executor != Executor::Celery {
            return;
        }
        let redis = self.machine("redis").place.program("redis-server");
        let redis = redis.user(Machine::uid()).args(["--port", "6379"]);
        let redis = redis.args(["--bind", "0.0.0.0", "--save", "", "--appendonly", "no"]);
        let redis = redis.args(["--requirepass", REDIS_PASSWORD]);
        let process = redis.start("redis", &self.mesh.scratch);
        self.processes.push(("redis".into(), process));
    }

    fn start_service(&mut self) {
        // FastAPI comes with Airflow 3.
        let python = Installed::find(Release::Three).program("uvicorn");
        let script = self.mesh.scratch.write("service.py", SERVICE);
        let directory = script.parent().expect("a directory").to_owned();
        let service = self.machine("orders-api").place.program(python);
        let service = service.user(Machine::uid()).directory(directory);
        let service = service
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["service:app", "--host", "0.0.0.0", "--port", "8000"])
            .arg("--no-access-log");
        let process = service.start("orders-api", &self.mesh.scratch);
        self.processes.push(("orders-api".into(), process));
    }

    fn start_airflow(&mut self) {
        for number in 1..=self.plan.api_servers {
            let name = format!("api-server-{number}");
            if self.plan.faulty {
                let place = &self.machine(&name).place;
                let listen = ([0, 0, 0, 0], API_PORT).into();
                let server = ([127, 0, 0, 1], BEHIND_FAULTS).into();
                self.faulty.push(Faulty::start(place, listen, server));
            }
            self.start_component(&name);
        }
        let names: Vec<String> = self
            .machines
            .iter()
            .map(|machine| machine.name.clone())
            .collect();
        for name in ["scheduler", "worker", "dag-processor", "triggerer"] {
            if names.iter().any(|it| it == name) {
                self.start_component(name);
            }
        }
    }

    /// Starts a component of Airflow on its machine, also again after its end.
    pub fn start_component(&mut self, name: &str) {
        let concurrency = self.plan.concurrency.to_string();
        let arguments: &[&str] = match name {
            "worker" => &["celery", "worker", "--concurrency", &concurrency],
            name if name.starts_with("api-server") && self.plan.faulty => {
                &["api-server", "--host", "127.0.0.1", "--port", "18080"]
            }
            name if name.starts_with("api-server") => &["api-server"],
            name => &[name],
        };
        let process = self
            .airflow(name)
            .args(arguments)
            .start(name, &self.mesh.scratch);
        self.processes.retain(|(it, _)| it != name);
        self.processes.push((name.to_owned(), process));
    }

    /// Airflow's command line, on the machine of a component and with its settings.
    pub fn airflow(&self, name: &str) -> Invocation {
        let home = self.home(name);
        if !home.exists() {
            std::fs::create_dir(&home).expect("a directory of one's own");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&home, mode).expect("a directory of one's own");
            chown(&home, Some(Machine::uid()), Some(Machine::uid()))
                .expect("root gives directories away");
        }
        let mut airflow = self
            .machine(name)
            .place
            .program(self.installed.program("airflow"))
            .user(Machine::uid())
            .hostname(name)
            .directory(&home)
            .timeout(START_PATIENCE);
        let plan = &self.plan;
        for (variable, value) in environment(plan.release, plan.executor, &home, &self.shared) {
            airflow = airflow.env(variable, value);
        }
        if plan.plugin && self.runs_tasks(name) {
            airflow = airflow
                .env("SIDEWIND_TASK_SOCKET", self.task_socket())
                .env("PYTHONPATH", self.plugin());
        }
        if plan.fork_server {
            airflow = airflow.env("AIRFLOW__SCHEDULER__MP_START_METHOD", "forkserver");
        }
        if plan.patient {
            airflow = airflow.env("AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT", "60");
        }
        airflow
    }

    /// Has this be wrong with all API servers from now on.
    pub fn set_fault(&self, fault: Fault) {
        for server in &self.faulty {
            server.set(fault);
        }
    }

    /// How many connections or requests have been spoiled so far.
    pub fn spoiled(&self) -> u64 {
        self.faulty.iter().map(Faulty::spoiled).sum()
    }

    /// Where clients outside the mesh find the API servers: at the gateway.
    ///
    /// # Panics
    /// Where there is neither.
    pub fn web(&self) -> SocketAddr {
        self.gateway.as_ref().map_or_else(
            || (self.machine("api-server-1").address, API_PORT).into(),
            Gateway::address,
        )
    }

    /// The gateway's process with its access log.
    ///
    /// # Panics
    /// Where there is none.
    pub fn gateway(&self) -> &Sidecar {
        &self.gateway.as_ref().expect("a gateway").sidecar
    }

    /// How often a component has said that it listens.
    fn times_listening(&self, name: &str) -> usize {
        let logs = ["out", "err"].map(|it| self.mesh.scratch.join(format!("{name}.{it}")));
        let texts = logs
            .iter()
            .filter_map(|log| std::fs::read_to_string(log).ok());
        texts
            .map(|text| text.matches("Uvicorn running").count())
            .sum()
    }

    /// How many requests lie at an API server and have not been read.
    ///
    /// # Panics
    /// Where the API servers stand behind no faults.
    pub fn unread(&self, name: &str) -> usize {
        assert!(self.plan.faulty, "requests are read as they come");
        let ss = self.machine(name).place.program("ss");
        let ss = ss.args(["-Htn", "state", "established"]);
        let listed = ss
            .arg(format!("sport = :{BEHIND_FAULTS}"))
            .finish()
            .success();
        let received = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        received.filter(|bytes| *bytes != "0").count()
    }

    #[track_caller]
    fn wait_until_listening(&self, name: &str, times: usize) {
        eventually(&format!("{name} listens"), START_PATIENCE, || {
            (self.times_listening(name) >= times).then_some(())
        });
    }

    /// Ends an API server by SIGTERM, and starts it again.
    ///
    /// # Panics
    /// When it does not listen again in time.
    #[track_caller]
    pub fn restart(&mut self, name: &str) {
        let times = self.times_listening(name);
        let process = self.process(name);
        process.signal(rustix::process::Signal::TERM);
        process.wait(START_PATIENCE);
        self.start_component(name);
        self.wait_until_listening(name, times + 1);
    }

    /// Logs in from outside the mesh, and stores what the DAGs need: a connection with a password, and a variable.
    ///
    /// # Panics
    /// When that is refused, or no API server answers in time.
    #[track_caller]
    pub fn login(&mut self) -> Rest {
        for number in 1..=self.plan.api_servers {
            let name = format!("api-server-{number}");
            self.wait_until_listening(&name, 1);
        }
        let rest = Rest::login(&self.outside.place, self.web(), START_PATIENCE);
        let connection = serde_json::json!({
            "connection_id": "orders_api", "conn_type": "http", "host": "orders-api.data", "port": 8000,
            "login": "airflow", "password": CONNECTION_PASSWORD,
        });
        rest.post("/api/v2/connections", &connection);
        let variable = serde_json::json!({ "key": "greeting", "value": "ahoy" });
        rest.post("/api/v2/variables", &variable);
        rest
    }

    /// Everything that has passed between the machines; the recording ends.
    ///
    /// # Panics
    /// Where there is none, or no more.
    #[track_caller]
    pub fn wire(&mut self) -> Wire {
        self.recording.take().expect("a recording").stop()
    }

    /// Waits for the end of a run, and gives its state.
    ///
    /// # Panics
    /// When it has not ended within `patience`.
    #[track_caller]
    pub fn wait_for_run(&self, dag_id: &str, run_id: &str, patience: Duration) -> String {
        let state = within(patience, || self.ended(dag_id, run_id));
        state.unwrap_or_else(|| {
            let tasks = self.tasks(dag_id, run_id);
            panic!("the run {run_id} of {dag_id} has not ended within {patience:?}; its tasks:\n{tasks}")
        })
    }

    /// The state of a run that has ended.
    #[track_caller]
    pub fn ended(&self, dag_id: &str, run_id: &str) -> Option<String> {
        let sql =
            format!("select state from dag_run where dag_id = '{dag_id}' and run_id = '{run_id}'");
        let state = self.query(&sql);
        matches!(state.as_str(), "success" | "failed").then_some(state)
    }

    /// What the service says it was told, a line of JSON for each call.
    ///
    /// # Panics
    /// When it has written nothing.
    #[track_caller]
    pub fn service_log(&self) -> String {
        let path = self.mesh.scratch.join("orders-api.out");
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    }

    /// The tasks of a run: id, map index, try, state, one a line.
    #[track_caller]
    pub fn tasks(&self, dag_id: &str, run_id: &str) -> String {
        self.query(&format!(
            "select task_id, map_index, try_number, state from task_instance \
             where dag_id = '{dag_id}' and run_id = '{run_id}' order by 1, 2"
        ))
    }

    /// Sets one of Airflow's variables, without its API servers.
    ///
    /// # Panics
    /// When the database refuses it.
    #[track_caller]
    pub fn set_variable(&self, key: &str, value: &str) {
        self.query(&format!(
            "insert into variable (key, val, is_encrypted) values ('{key}', '{value}', false) \
             on conflict (key) do update set val = excluded.val, is_encrypted = false"
        ));
    }

    /// Rows of a query to Airflow's database, one a line, with `|` between the columns.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_query(&self, sql: &str) -> Result<String, String> {
        let asked = Place::Host
            .program("psql")
            .user(user_number("postgres"))
            .arg("-h")
            .arg(self.home("postgres"))
            .args(["-U", "postgres", "-d", "airflow", "-Atc", sql])
            .timeout(Duration::from_secs(20))
            .finish();
        match asked.code() {
            Some(0) => Ok(asked.out().trim().to_owned()),
            _ => Err(asked.err()),
        }
    }

    /// Every access-log line of all sidecars and the gateway, with the name of the machine.
    pub fn access_log(&self) -> Vec<(String, AccessRecord)> {
        let machines = self
            .machines
            .iter()
            .map(|machine| (machine.name.as_str(), machine.sidecar()));
        let gateway = self.gateway.as_ref().map(|it| ("gateway", &it.sidecar));
        let of = |(name, sidecar): (&str, &Sidecar)| {
            let name = name.to_owned();
            let records = sidecar.access_log().into_iter();
            records
                .map(move |record| (name.clone(), record))
                .collect::<Vec<_>>()
        };
        machines.chain(gateway).flat_map(of).collect()
    }
}
