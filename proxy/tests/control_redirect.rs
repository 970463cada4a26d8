//! `sidewind-proxy redirect` judged by a kernel: two network namespaces, real connections, both tools.
//!
//! Needs root, since network namespaces do; without it the tests fail rather than say nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_uid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const WORKLOAD_V4: &str = "10.77.0.1";
const WORKLOAD_V6: &str = "[fd77::1]";
const OUTSIDE_V4: &str = "10.77.0.2";
const OUTSIDE_V6: &str = "[fd77::2]";

const WORKLOAD_UID: u32 = 1000;
const PROXY_UID: u32 = 1337;

/// A network namespace that goes when this does.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let name = format!("sidewind-{:08x}", rand::random::<u32>());
        ip(&["netns", "add", &name]);
        let namespace = Self(name);
        ip(&["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    /// Runs in the namespace, as this user.
    fn enter<T: Send + 'static>(&self, uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.0);
        let entered = thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        entered.join().unwrap()
    }

    fn run(&self, program: &[&str]) -> Output {
        let exec = ["netns", "exec", &self.0];
        Command::new("ip")
            .args(exec)
            .args(program)
            .output()
            .unwrap()
    }

    fn redirect(&self, arguments: &[&str]) -> String {
        let program = [
            &[env!("CARGO_BIN_EXE_sidewind-proxy"), "redirect"],
            arguments,
        ]
        .concat();
        let output = self.run(&program);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// All rules of both tools, without their counters.
    fn rules(&self) -> String {
        [
            "nft -s list ruleset",
            "iptables -t nat -S",
            "ip6tables -t nat -S",
        ]
        .map(|command| {
            let output = self.run(&command.split(' ').collect::<Vec<_>>());
            String::from_utf8(output.stdout).unwrap()
        })
        .join("\n")
    }

    /// A listener whose connections are answered with its name and the destination that they were for.
    fn serve(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let listener = self.enter(0, move || {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(16).unwrap();
            TcpListener::from(socket)
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(name, &stream.unwrap());
            }
        });
    }

    /// What answers a connection from this namespace.
    fn connect(&self, uid: u32, address: &str) -> String {
        let address: SocketAddr = address.parse().unwrap();
        self.enter(uid, move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn answer(name: &str, mut stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().unwrap();
    let original = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let original = original.ok().and_then(|address| address.as_socket());
    let text = match original.filter(|original| *original != local) {
        Some(original) => format!("{name} for {original}"),
        None => name.to_owned(),
    };
    stream.write_all(text.as_bytes()).unwrap();
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {text}");
}

/// A workload's namespace with the proxy's ports, joined to one outside.
struct World {
    workload: Namespace,
    outside: Namespace,
}

impl World {
    fn new() -> Self {
        let world = Self {
            workload: Namespace::new(),
            outside: Namespace::new(),
        };
        let (workload, outside) = (&world.workload, &world.outside);
        ip(&[
            "-n",
            &workload.0,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &outside.0,
        ]);
        for (namespace, v4, v6) in [
            (workload, WORKLOAD_V4, "fd77::1/64"),
            (outside, OUTSIDE_V4, "fd77::2/64"),
        ] {
            ip(&[
                "-n",
                &namespace.0,
                "addr",
                "add",
                &format!("{v4}/24"),
                "dev",
                "eth0",
            ]);
            ip(&[
                "-n",
                &namespace.0,
                "addr",
                "add",
                v6,
                "dev",
                "eth0",
                "nodad",
            ]);
            ip(&["-n", &namespace.0, "link", "set", "eth0", "up"]);
        }
        for (name, addresses) in [
            ("outbound", ["0.0.0.0:15001", "[::1]:15001"]),
            ("inbound", ["0.0.0.0:15006", "[::]:15006"]),
            ("mesh", ["0.0.0.0:15008", "[::]:15008"]),
            ("admin", ["0.0.0.0:15020", "[::]:15020"]),
            ("workload", ["0.0.0.0:8080", "[::]:8080"]),
        ] {
            for address in addresses {
                workload.serve(name, address);
            }
        }
        for port in [25, 80] {
            outside.serve("outside", &format!("0.0.0.0:{port}"));
            outside.serve("outside", &format!("[::]:{port}"));
        }
        world
    }

    fn check_redirected(&self) {
        for (workload, outside) in [(WORKLOAD_V4, OUTSIDE_V4), (WORKLOAD_V6, OUTSIDE_V6)] {
            let from_workload = |uid, address: String| self.workload.connect(uid, &address);
            let from_outside = |port| self.outside.connect(0, &format!("{workload}:{port}"));
            for (what, answer, expected) in [
                (
                    "a workload's connection",
                    from_workload(WORKLOAD_UID, format!("{outside}:80")),
                    format!("outbound for {outside}:80"),
                ),
                (
                    "root's connection",
                    from_workload(0, format!("{outside}:80")),
                    format!("outbound for {outside}:80"),
                ),
                (
                    "the proxy's own connection",
                    from_workload(PROXY_UID, format!("{outside}:80")),
                    "outside".to_owned(),
                ),
                (
                    "a workload that calls itself by its address",
                    from_workload(WORKLOAD_UID, format!("{workload}:8080")),
                    "workload".to_owned(),
                ),
                (
                    "what the proxy forwards",
                    from_workload(PROXY_UID, format!("{workload}:8080")),
                    "workload".to_owned(),
                ),
                (
                    "a client's connection",
                    from_outside(8080),
                    format!("inbound for {workload}:8080"),
                ),
                ("a mesh peer", from_outside(15008), "mesh".to_owned()),
                ("a probe", from_outside(15020), "admin".to_owned()),
            ] {
                assert_eq!(answer, expected, "{what}");
            }
        }
        for loopback in ["127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(self.workload.connect(WORKLOAD_UID, loopback), "workload");
        }
    }

    fn check_not_redirected(&self) {
        for (workload, outside) in [(WORKLOAD_V4, OUTSIDE_V4), (WORKLOAD_V6, OUTSIDE_V6)] {
            let answer = self
                .workload
                .connect(WORKLOAD_UID, &format!("{outside}:80"));
            assert_eq!(answer, "outside");
            let answer = self.outside.connect(0, &format!("{workload}:8080"));
            assert_eq!(answer, "workload");
        }
    }
}

/// Everything that one tool is asked to do.
fn lifecycle(backend: &str) {
    let world = World::new();
    let backend = format!("--backend={backend}");
    world.check_not_redirected();

    let printed = world.workload.redirect(&[&backend]);
    assert!(printed.starts_with("redirection set up by "), "{printed}");
    world.check_redirected();

    let once = world.workload.rules();
    world.workload.redirect(&[&backend]);
    assert_eq!(
        world.workload.rules(),
        once,
        "setting up twice is setting up once"
    );
    world.check_redirected();

    world.workload.redirect(&[
        &backend,
        "--exclude-outbound-ports=25",
        "--exclude-outbound-cidrs=fd77::/64",
        "--exclude-inbound-ports=8080",
    ]);
    let from_workload = |address: &str| world.workload.connect(WORKLOAD_UID, address);
    assert_eq!(from_workload("10.77.0.2:25"), "outside");
    assert_eq!(from_workload("10.77.0.2:80"), "outbound for 10.77.0.2:80");
    assert_eq!(from_workload("[fd77::2]:80"), "outside");
    assert_eq!(world.outside.connect(0, "10.77.0.1:8080"), "workload");

    world.workload.redirect(&[&backend, "--remove"]);
    world.check_not_redirected();
    let after = world.workload.rules();
    assert!(!after.to_ascii_lowercase().contains("sidewind"), "{after}");
    world.workload.redirect(&[&backend, "--remove"]);
}

#[test]
fn nftables_redirects_and_restores() {
    lifecycle("nftables");
}

#[test]
fn iptables_redirects_and_restores() {
    lifecycle("iptables");
}

#[test]
fn removal_finds_the_rules_of_either_tool() {
    let world = World::new();
    world.workload.redirect(&["--backend=iptables"]);
    world.workload.redirect(&["--backend=nftables"]);
    world.check_redirected();
    world.workload.redirect(&["--remove"]);
    world.check_not_redirected();
}

#[test]
fn rules_of_others_are_left_alone() {
    let world = World::new();
    let namespace = &world.workload;
    for command in [
        "nft add table inet others",
        "iptables -t nat -A OUTPUT -p tcp -d 10.77.0.2 --dport 2222 -j REDIRECT --to-ports 8080",
    ] {
        let output = namespace.run(&command.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{output:?}");
    }
    let others = |rules: String| -> Vec<String> {
        rules
            .lines()
            .filter(|line| line.contains("others") || line.contains("--dport 2222"))
            .map(ToOwned::to_owned)
            .collect()
    };
    let before = others(namespace.rules());
    for arguments in [
        &["--backend=nftables"][..],
        &["--backend=iptables"],
        &["--remove"],
    ] {
        namespace.redirect(arguments);
        assert_eq!(others(namespace.rules()), before, "{arguments:?}");
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let namespace = Namespace::new();
    let before = namespace.rules();
    let printed = namespace.redirect(&["--dry-run"]);
    assert!(printed.contains("table inet sidewind"), "{printed}");
    assert_eq!(namespace.rules(), before);
}

#[test]
fn without_the_capability_the_error_names_it() {
    let namespace = Namespace::new();
    let output = namespace.run(&[
        "setpriv",
        "--bounding-set=-net_admin",
        env!("CARGO_BIN_EXE_sidewind-proxy"),
        "redirect",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("NET_ADMIN"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_bad_flag_is_one_line_and_exit_code_64() {
    let program = env!("CARGO_BIN_EXE_sidewind-proxy");
    for (arguments, expected) in [
        (vec!["redirect", "--uid=0"], "--uid: 0 would exempt"),
        (
            vec!["redirect", "--nope"],
            "command line: \"--nope\" is not known",
        ),
        (vec!["--workers=0"], "--workers: 0 is not in 1..=256"),
        (
            vec![],
            "--control-plane (or SIDEWIND_CONTROL_PLANE): is needed",
        ),
    ] {
        let mut command = Command::new(program);
        let output = command.args(&arguments).env_clear().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(expected), "{text}");
    }
}
