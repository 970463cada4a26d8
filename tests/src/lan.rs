//! A network of our own: a router's namespace and one namespace for each host, joined by veth pairs.
//!
//! Every packet between two hosts passes the router, which is where a listener on the wire would sit.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cleanup::{Held, Ticket, hold, remove_leftovers};
use crate::place::Place;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// A network namespace that goes away when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    _ticket: Ticket,
}

impl Namespace {
    /// Makes one, with nothing but a loopback interface.
    ///
    /// # Panics
    /// Without root: what needs namespaces fails loudly and is never skipped.
    #[expect(clippy::new_without_default, reason = "it changes the machine")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static FIRST: Once = Once::new();
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces and needs root: run `make test` as root or with password-less sudo"
        );
        FIRST.call_once(remove_leftovers);
        let name = format!(
            "sw-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let namespace = Self {
            _ticket: hold(Held::Namespace(name.clone())),
            name,
        };
        ip(&["netns", "add", &namespace.name]);
        let _ = std::fs::create_dir_all(namespace.files());
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        namespace.write_hosts("127.0.0.1 localhost\n::1 localhost\n");
        // A name that is in no hosts file is unknown at once, not after the patience of a resolver.
        namespace.write_file("resolv.conf", "nameserver 127.0.0.1\n");
        namespace
    }

    /// To run things in it.
    pub fn place(&self) -> Place {
        Place::Namespace(self.name.as_str().into())
    }

    fn files(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// Programs started in the namespace see this as /etc/hosts. Written in place, so that running ones see it too.
    fn write_hosts(&self, text: &str) {
        self.write_file("hosts", text);
    }

    fn write_file(&self, name: &str, text: &str) {
        let path = self.files().join(name);
        std::fs::write(&path, text)
            .unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
    }
}

/// A host of a [`Lan`].
#[derive(Clone, Debug)]
pub struct Host {
    /// Where its programs run.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A router and its hosts.
#[derive(Debug)]
pub struct Lan {
    router: Namespace,
    hosts: Vec<Namespace>,
    names: Vec<(String, Ipv4Addr)>,
}

impl Lan {
    /// Makes a router without hosts.
    #[expect(clippy::new_without_default, reason = "it changes the machine")]
    pub fn new() -> Self {
        let router = Namespace::new();
        router
            .place()
            .program("sysctl")
            .args(["-qw", "net.ipv4.ip_forward=1"])
            .finish()
            .success();
        Self {
            router,
            hosts: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Where all packets pass.
    pub fn router(&self) -> Place {
        self.router.place()
    }

    /// Adds a host. All hosts know it by `name`.
    ///
    /// # Panics
    /// After 250 hosts, or when the kernel refuses a link.
    pub fn host(&mut self, name: &str) -> Host {
        let namespace = Namespace::new();
        let number = u8::try_from(self.hosts.len() + 2)
            .ok()
            .filter(|number| *number < 253)
            .expect("a few hosts");
        let address = Ipv4Addr::new(10, 77, 0, number);
        let (link, at) = (format!("host{number}"), format!("{address}/32"));
        let (inside, router) = (namespace.name.clone(), self.router.name.clone());
        ip(&[
            "-n", &router, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns",
            &inside,
        ]);
        ip(&[
            "-n",
            &router,
            "address",
            "add",
            &format!("{ROUTER}/32"),
            "dev",
            &link,
        ]);
        ip(&["-n", &router, "link", "set", &link, "up"]);
        ip(&["-n", &router, "route", "add", &at, "dev", &link]);
        ip(&["-n", &inside, "address", "add", &at, "dev", "eth0"]);
        ip(&["-n", &inside, "link", "set", "eth0", "up"]);
        ip(&[
            "-n",
            &inside,
            "route",
            "add",
            &ROUTER.to_string(),
            "dev",
            "eth0",
        ]);
        ip(&[
            "-n",
            &inside,
            "route",
            "add",
            "default",
            "via",
            &ROUTER.to_string(),
        ]);
        let place = namespace.place();
        self.hosts.push(namespace);
        self.name(name, address);
        Host { place, address }
    }

    /// Has all hosts know `address` by one more name.
    pub fn name(&mut self, name: &str, address: Ipv4Addr) {
        self.names.push((name.into(), address));
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (name, address) in &self.names {
            let _ = writeln!(text, "{address} {name}");
        }
        for host in &self.hosts {
            host.write_hosts(&text);
        }
    }

    /// Gives a host another IPv4 address besides.
    pub fn add_address(&mut self, host: &Host, address: Ipv4Addr) {
        let link = format!("host{}", host.address.octets()[3]);
        let at = format!("{address}/32");
        let add = ["address", "add", &at, "dev", "eth0"];
        host.place.program("ip").args(add).finish().success();
        ip(&["-n", &self.router.name, "route", "add", &at, "dev", &link]);
    }

    /// Gives a host an IPv6 address besides. Two that have one reach each other.
    pub fn add_ipv6(&mut self, host: &Host) -> Ipv6Addr {
        let number = u16::from(host.address.octets()[3]);
        let (link, inside) = (format!("host{number}"), host.place.clone());
        let [router, address] =
            [1, 2].map(|last| Ipv6Addr::new(0xfd77, 0, 0, number, 0, 0, 0, last));
        let run = |place: &Place, program: &str, arguments: &[&str]| {
            place.program(program).args(arguments).finish().success();
        };
        let forward = ["-qw", "net.ipv6.conf.all.forwarding=1"];
        run(&self.router(), "sysctl", &forward);
        // Without duplicate address detection, which would take a second.
        for (place, address, device) in [
            (self.router(), router, link.as_str()),
            (inside.clone(), address, "eth0"),
        ] {
            let network = format!("{address}/64");
            run(
                &place,
                "ip",
                &["-6", "address", "add", &network, "dev", device, "nodad"],
            );
        }
        let via = router.to_string();
        run(
            &inside,
            "ip",
            &["-6", "route", "add", "default", "via", &via],
        );
        address
    }

    /// Cuts or mends the link of a host: its packets vanish on the way.
    pub fn set_link(&self, host: &Host, up: bool) {
        let link = format!("host{}", host.address.octets()[3]);
        ip(&[
            "-n",
            &self.router.name,
            "link",
            "set",
            &link,
            if up { "up" } else { "down" },
        ]);
        if up {
            // The kernel forgets routes over a link that goes down.
            ip(&[
                "-n",
                &self.router.name,
                "route",
                "replace",
                &format!("{}/32", host.address),
                "dev",
                &link,
            ]);
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("cannot run ip (package iproute2): {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "ip {}: {errors}",
        arguments.join(" ")
    );
}
