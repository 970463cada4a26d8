//! No key, no token and nothing that a client confides gets out: not by a log, a page, a file, an environment, or
//! memory that others may read.

use std::path::Path;

use sidewind_tests::authority::TestAuthority;
use sidewind_tests::http::Request;
use sidewind_tests::mesh::{JoinToken, Mesh, SIDECAR_UID};
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::Pair;

/// What stands before every P-256 key in PKCS #8 (RFC 5958).
const PKCS8: &[u8] =
    b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x6d\x30\x6b\x02\x01\x01\x04\x20";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What must not be found, each with its name.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        assert!(bytes.as_ref().len() >= 12, "{name} would be found anywhere");
        self.0.push((name.to_owned(), bytes.as_ref().to_owned()));
    }

    /// Any private key at all, in each form that one is written in.
    fn any_key() -> Self {
        let mut secrets = Self::default();
        secrets.add("a key in PEM", "PRIVATE KEY-----");
        secrets.add("a key in PKCS #8", PKCS8);
        secrets.add("a key in PKCS #8 as hexadecimal", hex(PKCS8));
        // The 20 bytes above as they come out of base64 at their place in a PEM file.
        secrets.add(
            "a key in base64",
            "MBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg",
        );
        secrets
    }

    /// A certain key: as bytes, as text, and as a list of numbers.
    fn add_key(&mut self, name: &str, der: &[u8], pem: &str) {
        let mut windows = der.windows(5);
        let at = windows
            .position(|window| window == [2, 1, 1, 4, 32])
            .unwrap()
            + 5;
        let scalar = &der[at..at + 32];
        self.add(name, scalar);
        self.add(name, hex(scalar));
        self.add(name, hex(scalar).to_uppercase());
        let numbers: Vec<String> = scalar.iter().map(u8::to_string).collect();
        self.add(name, numbers.join(", "));
        // Each holds 48 bytes; what comes behind the scalar is the public key, which certificates hold too.
        let lines = pem.lines().filter(|line| !line.starts_with('-'));
        for line in lines.take((at + scalar.len()).div_ceil(48)) {
            self.add(name, line);
        }
    }

    fn found_in(&self, content: &[u8]) -> Option<&str> {
        let holds = |secret: &[u8]| content.windows(secret.len()).any(|window| window == secret);
        let found = self.0.iter().find(|(_, secret)| holds(secret));
        found.map(|(name, _)| name.as_str())
    }

    #[track_caller]
    fn not_in(&self, what: &str, content: impl AsRef<[u8]>) {
        let content = content.as_ref();
        assert!(
            !content.is_empty(),
            "{what} is empty, so this shows nothing"
        );
        if let Some(name) = self.found_in(content) {
            panic!("{what} holds {name}");
        }
    }

    /// Every file below a directory, but those of these names.
    #[track_caller]
    fn not_below(&self, directory: &Path, except: &[&str]) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = entry.file_name().into_string().unwrap();
            if kind.is_dir() {
                self.not_below(&path, except);
            } else if kind.is_file() && !except.contains(&name.as_str()) {
                let content = std::fs::read(&path).unwrap();
                if let Some(found) = self.found_in(&content) {
                    panic!("{} holds {found}", path.display());
                }
            }
        }
    }
}

/// What `/proc` shows of a process to root: its environment and command line.
fn shown_of(process: u32) -> Vec<u8> {
    let read = |name: &str| std::fs::read(format!("/proc/{process}/{name}")).unwrap();
    [read("environ"), read("cmdline")].concat()
}

/// A pair whose root's key is known, with logs that leave nothing out, and a token that is refused.
struct Story {
    pair: Pair,
    secrets: Secrets,
}

const CONFIDED: [&str; 4] = [
    "canary-credential-7f3a",
    "canary-cookie-91cc",
    "canary-query-44e0",
    "canary-body-d2b8",
];

impl Story {
    fn begin() -> Self {
        let authority = TestAuthority::new();
        let mesh = Mesh::plan().root(&authority).flag("--log-level", "trace");
        let mut mesh = mesh.start();
        let api = mesh.workload("data", "orders-api");
        let api = api
            .serves("orders-api.data=8080/http")
            .flag("--log-level", "trace");
        let api = api.start();
        let server = sidewind_tests::workloads::api(&api, 8080, &mesh.scratch);
        let task = mesh
            .workload("airflow", "task")
            .flag("--log-level", "trace")
            .start();
        let pair = Pair {
            task,
            api,
            server,
            mesh,
        };
        let mut secrets = Secrets::default();
        secrets.add_key(
            "the root's key",
            &authority.root_key_der(),
            &authority.root_key_pem(),
        );
        for canary in CONFIDED {
            secrets.add("what a client confided", canary);
        }
        let mut story = Self { pair, secrets };
        story.confide();
        story.ask_with_bad_tokens();
        for name in ["task", "orders-api", "late", "thief"] {
            let tokens = story.files_of(&format!("{name}-"), ".token");
            assert_eq!(tokens.len(), 1, "{name}");
            story.secrets.add("a join token", tokens[0].trim());
        }
        story
    }

    /// Calls that carry what is nobody's business, and refusals of such.
    fn confide(&self) {
        let [credential, cookie, query, body] = CONFIDED;
        let (credential, cookie) = (
            format!("authorization: Bearer {credential}"),
            format!("cookie: session={cookie}"),
        );
        let headers = ["-H", &credential, "-H", &cookie];
        let mut answers = String::new();
        for path in ["/echo", "/orders", "/nowhere"] {
            let url = format!("{path}?token={query}");
            answers += &self.pair.curl(&url, &headers);
            answers += &self
                .pair
                .curl(path, &[&headers[..], &["-d", body]].concat());
        }
        // The workload got all of it.
        assert!(
            CONFIDED.iter().all(|canary| answers.contains(canary)),
            "{answers}"
        );
        let huge = format!("x-huge: {query}{}", "x".repeat(100_000));
        let refused = self.pair.ask("/orders", &["-H", &huge]);
        assert_eq!(refused.error, "header-too-large", "{}", refused.body);
    }

    /// Brings a token that was used already, and one that was made up, by the variable, as a container is given it.
    /// The control plane refuses them.
    fn ask_with_bad_tokens(&self) {
        let mesh = &self.pair.mesh;
        let unused = mesh.control_plane.token(&JoinToken {
            spiffe_id: "spiffe://sidewind.local/ns/airflow/sa/late".into(),
            ..JoinToken::default()
        });
        let made_up = format!("swj_{}", "Q".repeat(43));
        for (name, token) in [
            ("late-unused.token", &unused),
            ("thief-made-up.token", &made_up),
        ] {
            mesh.scratch.write_secret(name, token, None);
        }
        let used = self.files_of("task-", ".token").concat();
        for (name, token) in [("used", used.trim()), ("made-up", &made_up)] {
            let proxy = mesh.proxy(mesh.control_plane.host());
            let mut process = proxy
                .args(["--capture", "explicit", "--log-level", "trace"])
                .env("SIDEWIND_JOIN_TOKEN", token)
                .start(name, &mesh.scratch);
            process.wait_for_log("no new SVID", PATIENCE);
            process.kill();
        }
        let log = mesh.control_plane.log();
        for reason in ["join-token-used", "join-token-unknown"] {
            assert!(log.contains(reason), "{reason}: {log}");
        }
    }

    /// What is in the files of these names.
    fn files_of(&self, begin: &str, end: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.pair.mesh.scratch.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let named = paths.filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(begin) && name.ends_with(end)
        });
        named
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }
}

#[test]
fn no_log_page_file_or_environment_holds_a_key_a_token_or_what_a_client_confided() {
    let mut story = Story::begin();
    let scratch = story.pair.mesh.scratch.path().to_owned();
    // The search finds what is there.
    let key = std::fs::read(scratch.join("root.key")).unwrap();
    assert_eq!(story.secrets.found_in(&key), Some("the root's key"));
    assert!(Secrets::any_key().found_in(&key).is_some());
    let token = story.files_of("task-", ".token").concat();
    assert_eq!(
        story.secrets.found_in(token.as_bytes()),
        Some("a join token")
    );

    for secrets in [&story.secrets, &Secrets::any_key()] {
        for sidecar in [&story.pair.task.sidecar, &story.pair.api.sidecar] {
            secrets.not_in("the sidecar's log", sidecar.log());
            for page in [
                "/config",
                "/metrics",
                "/ready",
                "/live",
                "/log-level",
                "/debug",
            ] {
                secrets.not_in(page, sidecar.get(page).body);
            }
        }
        let host = story.pair.mesh.control_plane.host();
        for page in ["/metrics", "/ready", "/live", "/config", "/debug"] {
            let reply = Request::get(([127, 0, 0, 1], 15014).into(), page).send(&host.place);
            secrets.not_in(page, reply.body);
        }
        secrets.not_in(
            "the control plane's log",
            story.pair.mesh.control_plane.log(),
        );
    }
    // Logs of the refused ones, access logs, configuration, the state: all but what was given to them by hand.
    let given: Vec<String> = std::fs::read_dir(&scratch)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".token") || name == "root.key")
        .collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    story.secrets.not_below(&scratch, &given);
    // The signing key of the control plane is in its store, which is for its owner alone.
    let store = ["sidewind.db", "sidewind.db-wal", "sidewind.db-shm"];
    Secrets::any_key().not_below(&scratch, &[&given[..], &store].concat());

    let processes = [
        story.pair.mesh.control_plane.process().id(),
        story.pair.task.sidecar.process().id(),
        story.pair.api.sidecar.process().id(),
    ];
    for process in processes {
        story.secrets.not_in("what /proc shows", shown_of(process));
        Secrets::any_key().not_in("what /proc shows", shown_of(process));
    }
}

#[test]
fn a_sidecar_writes_no_file_and_others_of_its_user_do_not_see_its_memory() {
    let mut pair = Pair::start();
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    let process = pair.task.sidecar.process().id();
    let own = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    for file in own {
        let Ok(path) = std::fs::read_link(file.unwrap().path()) else {
            continue;
        };
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_log = name == "task-sidecar.out" || name == "task-sidecar.err";
        assert!(
            !path.is_file() || is_log,
            "it holds {} open",
            path.display()
        );
    }
    let program = |program: &str| pair.task.place.program(program).user(SIDECAR_UID);
    // The user's own programs are seen, so what refuses is not the sandbox.
    program("cat").arg("/proc/self/environ").finish().success();
    for name in ["environ", "maps", "mem", "auxv"] {
        let path = format!("/proc/{process}/{name}");
        let said = program("head").args(["-c", "1", &path]).finish().failure();
        assert!(said.contains("Permission denied"), "{name}: {said}");
    }
}

#[test]
fn others_of_the_control_planes_user_do_not_see_its_memory_and_other_users_get_no_token() {
    let mesh = Mesh::plan().start();
    let host = mesh.control_plane.host();
    let state = mesh.scratch.directory("own-state", Some(SIDECAR_UID));
    let serve = mesh.control_plane.command().user(SIDECAR_UID).args([
        "serve",
        "--listen",
        "127.0.0.1:16010",
        "--admin-listen",
        "127.0.0.1:16014",
        "--state-dir",
    ]);
    let process = serve.arg(&state).start("own-control-plane", &mesh.scratch);
    eventually("it is ready", PATIENCE, || {
        let ready = Request::get(([127, 0, 0, 1], 16014).into(), "/ready");
        ready
            .try_send(&host.place)
            .ok()
            .filter(|reply| reply.status == 200)
    });
    for name in ["environ", "maps", "mem", "auxv"] {
        let path = format!("/proc/{}/{name}", process.id());
        let head = host.place.program("head").user(SIDECAR_UID);
        let said = head.args(["-c", "1", &path]).finish().failure();
        assert!(said.contains("Permission denied"), "{name}: {said}");
    }
    // Its own user may ask for a token; another may not, whatever the mode of the directory.
    let create = |user: u32| {
        let command = mesh.control_plane.command().user(user);
        let id = "spiffe://sidewind.local/admin";
        let command = command.args(["token", "create", "--spiffe-id", id, "--state-dir"]);
        command.arg(&state).finish()
    };
    assert!(create(SIDECAR_UID).success().starts_with("swj_"));
    let said = create(SIDECAR_UID + 1).failure();
    assert!(said.contains("denied") && !said.contains("swj_"), "{said}");
    // Nor where the socket's own mode was loosened.
    let open = |path: &Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&state.join("admin.sock"), 0o777);
    let said = create(SIDECAR_UID + 1).failure();
    assert!(!said.contains("swj_"), "{said}");
    process.wait_for_log("not-permitted", PATIENCE);
}
