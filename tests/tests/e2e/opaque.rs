//! Connections that are not HTTP, carried byte by byte.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sidewind_tests::mesh::{Mesh, MeshPlan, Workload};
use sidewind_tests::wait::{PATIENCE, eventually};
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A server of one kind beside the sidecar of `workload`: what it does with each connection.
fn serve(workload: &Workload, port: u16, each: fn(TcpStream)) {
    let listener: TcpListener = workload
        .place
        .listen((workload.bind(), port).into())
        .expect("a free port");
    workload.place.spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || each(stream));
        }
    });
}

/// Reads to the end and only then answers.
fn answer_after_the_end(mut stream: TcpStream) {
    let mut received = Vec::new();
    if stream.read_to_end(&mut received).is_ok() {
        received.reverse();
        let _ = stream.write_all(&received);
    }
}

const GREETING: &[u8; 21] = b"220 at your service\r\n";

/// Speaks first, as MySQL, SMTP and SSH do.
fn greet(mut stream: TcpStream) {
    let _ = stream.write_all(GREETING);
    let _ = stream.read(&mut [0; 64]);
}

/// Sends more than any buffer holds, and then says how much it received.
fn pour(mut stream: TcpStream) {
    let mut reading = stream.try_clone().expect("a socket");
    let count = std::thread::spawn(move || {
        std::io::copy(&mut reading, &mut std::io::sink()).unwrap_or_default()
    });
    let _ = stream.write_all(&vec![b'x'; POURED]);
    let received = count.join().unwrap_or_default();
    let _ = stream.write_all(&received.to_be_bytes());
}

const POURED: usize = 8 << 20;

fn pair(served: &str) -> (Mesh, Workload, Workload) {
    let mut mesh = Mesh::plan().start();
    let server = mesh.workload("data", "server").serves(served).start();
    let client = mesh.workload("airflow", "task").start();
    (mesh, server, client)
}

fn dial(client: &Workload, address: SocketAddr) -> TcpStream {
    client
        .place
        .connect(address, TIMEOUT)
        .expect("the sidecar accepts")
}

#[test]
fn a_client_that_closes_its_half_still_gets_the_answer() {
    let (_mesh, server, client) = pair("server.data=7000/tcp");
    serve(&server, 7000, answer_after_the_end);
    let mut stream = dial(&client, server.at(7000));
    stream.write_all(b"desrever").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "reversed");
    let record = client
        .sidecar
        .wait_for_access("the connection", |record| !record.is_request());
    assert_eq!(
        (
            record.number("request_bytes"),
            record.number("response_bytes")
        ),
        (8, 8),
        "{record}"
    );
    assert!(record.tls() && record.error().is_empty(), "{record}");
    assert_eq!(
        (record.source_id(), record.destination_id()),
        (client.spiffe_id.clone(), server.spiffe_id.clone())
    );
    let inbound = server
        .sidecar
        .wait_for_access("the connection", |record| record.direction() == "inbound");
    assert_eq!(
        (inbound.source_id(), inbound.text("protocol").as_str()),
        (client.spiffe_id.clone(), "tcp"),
        "{inbound}"
    );
}

#[test]
fn a_client_that_stays_silent_becomes_opaque_after_about_a_second() {
    let (_mesh, server, client) = pair("server.data=7000");
    serve(&server, 7000, greet);
    let begun = Instant::now();
    let mut stream = dial(&client, server.at(7000));
    // All of it: closing with something unread resets a connection.
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, GREETING);
    let waited = begun.elapsed();
    assert!(
        (Duration::from_millis(700)..Duration::from_secs(4)).contains(&waited),
        "{waited:?}"
    );
    drop(stream);
    let record = client
        .sidecar
        .wait_for_access("the connection", |record| !record.is_request());
    assert!(
        record.error().is_empty() && record.text("protocol") == "tcp",
        "{record}"
    );
    // What is to be done about it is said, and not for each connection.
    let mut again = dial(&client, server.at(7000));
    again.read_exact(&mut greeting).unwrap();
    let remedy = "declare the port's protocol as tcp to spare its connections the wait";
    let log = client.sidecar.log();
    assert_eq!(log.matches(remedy).count(), 1, "{log}");
}

/// Three servers of one service, at an address that no host has; each says which it is.
fn fleet(plan: MeshPlan) -> (Mesh, Vec<Workload>, Workload) {
    let mut mesh = plan.config("entry.yaml", ENTRY).start();
    let servers = ["a", "b", "c"].map(|name| {
        let server = mesh.workload("data", name);
        let server = server.serves("server.data=7000/tcp").start();
        serve(&server, 7000, say_where);
        server
    });
    let client = mesh.workload("airflow", "task").start();
    (mesh, servers.into(), client)
}

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: server, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 7000, protocol: tcp }]
  service: server.data
";

fn say_where(mut stream: TcpStream) {
    let address = stream.local_addr().expect("a socket");
    let _ = stream.write_all(address.to_string().as_bytes());
}

/// Which of the [`fleet`] a connection goes to.
fn ask_where(client: &Workload) -> String {
    let mut said = String::new();
    let mut stream = dial(client, ([10, 96, 0, 10], 7000).into());
    stream.read_to_string(&mut said).expect("who it is");
    said
}

/// Waits until connections go to all of the servers.
fn wait_for_all(client: &Workload, servers: &[Workload]) {
    let mut seen = BTreeSet::new();
    eventually("all are known", PATIENCE, || {
        seen.insert(ask_where(client));
        (seen.len() == servers.len()).then_some(())
    });
}

#[test]
fn connections_are_balanced_by_who_makes_them_where_the_policy_says_so() {
    let policy = |source: &str| {
        format!(
            "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: server, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: server }}]
  balance: {{ algorithm: {source} }}
"
        )
    };
    let plan = Mesh::plan().config("traffic.yaml", &policy("roundRobin"));
    let (mesh, servers, client) = fleet(plan);
    wait_for_all(&client, &servers);
    for source in ["identity", "address"] {
        let hash = format!("consistentHash, hash: {{ source: {source} }}");
        let config = &mesh.control_plane;
        config.write_config("traffic.yaml", &policy(&hash));
        eventually("the same client goes to the same server", PATIENCE, || {
            let seen: BTreeSet<String> = (0..12).map(|_| ask_where(&client)).collect();
            (seen.len() == 1).then_some(())
        });
        config.write_config("traffic.yaml", &policy("roundRobin"));
        wait_for_all(&client, &servers);
    }
}

#[test]
fn a_connection_goes_on_to_another_endpoint_where_one_has_died() {
    let (mut mesh, mut servers, client) = fleet(Mesh::plan());
    wait_for_all(&client, &servers);
    // Nobody says any more who is there.
    mesh.control_plane.kill();
    let mut dead = servers.remove(0);
    dead.sidecar.process().kill();
    for _ in 0..20 {
        let said = ask_where(&client);
        let alive = servers
            .iter()
            .any(|server| server.at(7000).to_string() == said);
        assert!(alive, "{said:?}");
    }
    let known = client.sidecar.get("/endpoints").text();
    assert!(known.contains(&dead.at(7000).to_string()), "{known}");
    let tried_again = client.sidecar.wait_for_access("a second try", |record| {
        !record.is_request() && record.number("attempts") > 1
    });
    assert_eq!(tried_again.error(), "", "{tried_again}");
}

#[test]
fn a_port_that_is_declared_opaque_is_not_waited_for() {
    let (_mesh, server, client) = pair("server.data=7000/tcp");
    serve(&server, 7000, greet);
    // The first connection also waits for discovery.
    drop(dial(&client, server.at(7000)));
    let begun = Instant::now();
    let mut stream = dial(&client, server.at(7000));
    stream.read_exact(&mut [0; 5]).unwrap();
    assert!(
        begun.elapsed() < Duration::from_millis(700),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn megabytes_pass_in_both_directions_at_once() {
    let (_mesh, server, client) = pair("server.data=7000/tcp");
    serve(&server, 7000, pour);
    let mut stream = dial(&client, server.at(7000));
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        reading.read_to_end(&mut received).unwrap();
        received
    });
    stream.write_all(&vec![b'y'; POURED]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let received = reader.join().unwrap();
    let (poured, count) = received.split_at(received.len() - 8);
    assert!(poured.len() == POURED && poured.iter().all(|byte| *byte == b'x'));
    assert_eq!(count, (POURED as u64).to_be_bytes());
}

#[test]
fn readers_that_stall_hold_up_nobody_else_and_little_memory() {
    const STALLED: usize = 40;
    const OTHERS: usize = 10;
    let (_mesh, mut server, mut client) = pair("server.data=7000/tcp");
    serve(&server, 7000, pour);
    let address = server.at(7000);
    let pour_through = |client: &Workload| {
        let stream = dial(client, address);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(drain(&stream), POURED as u64 + 8);
    };
    pour_through(&client);
    let before = (
        client.sidecar.process().resident_bytes(),
        server.sidecar.process().resident_bytes(),
    );
    // Nobody reads these, and all share one connection between the sidecars.
    let stalled: Vec<TcpStream> = (0..STALLED)
        .map(|_| {
            let stream = dial(&client, address);
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    let open = |server: &Workload| {
        let opaque = [("direction", "inbound"), ("protocol", "tcp")];
        server
            .sidecar
            .metrics()
            .sum("sidewind_connections_active", &opaque)
    };
    eventually("all are open", PATIENCE, || {
        (open(&server) == STALLED as f64).then_some(())
    });
    // Ten times what all stalled ones together may have on the way.
    (0..OTHERS).for_each(|_| pour_through(&client));
    assert_eq!(open(&server), STALLED as f64, "the stalled ones have ended");
    // What was poured into the stalled ones is 320 MiB; a window of 256 KiB each is 10.
    let grown = [
        client
            .sidecar
            .process()
            .resident_bytes()
            .saturating_sub(before.0)
            >> 20,
        server
            .sidecar
            .process()
            .resident_bytes()
            .saturating_sub(before.1)
            >> 20,
    ];
    assert!(grown.iter().all(|grown| *grown < 40), "{grown:?} MiB more");
    // And once they are read, they lack nothing.
    for stream in &stalled {
        assert_eq!(drain(stream), POURED as u64 + 8);
    }
}

/// Reads to the end, and says how much that was.
fn drain(mut stream: &TcpStream) -> u64 {
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
}

#[test]
fn tls_of_the_application_passes_untouched() {
    let (mesh, server, client) = pair("server.data=8443");
    let (key, certificate) = (mesh.scratch.join("app.key"), mesh.scratch.join("app.pem"));
    let request = server.place.program("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=server.data",
    ]);
    let request = request.args(["-addext", "subjectAltName=DNS:server.data", "-days", "2"]);
    request
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .finish()
        .success();
    let openssl = server
        .place
        .program("openssl")
        .args(["s_server", "-accept", "8443", "-www", "-tls1_2"]);
    let mut process = openssl
        .arg("-key")
        .arg(&key)
        .arg("-cert")
        .arg(&certificate)
        .start("s_server", &mesh.scratch);
    process.wait_until("s_server listens", PATIENCE, || {
        server.place.is_open(server.local(8443))
    });
    // The application's own certificate is verified by the client itself: nobody has opened its TLS.
    let curl = client.curl(&[
        "--cacert",
        &certificate.to_string_lossy(),
        "https://server.data:8443/",
    ]);
    assert!(curl.finish().success().contains("TLSv1.2"));
    let record = client
        .sidecar
        .wait_for_access("the connection", |record| record.text("protocol") == "tls");
    assert!(
        record.tls() && record.destination_id() == server.spiffe_id,
        "{record}"
    );
}

#[test]
fn a_connection_that_nobody_accepts_is_closed_and_logged() {
    let (_mesh, server, client) = pair("server.data=7000/tcp");
    let mut stream = dial(&client, server.at(7000));
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.is_empty());
    let record = client
        .sidecar
        .wait_for_access("the failure", |record| !record.error().is_empty());
    assert_eq!(record.error(), "workload-unavailable", "{record}");
}

#[test]
fn closed_connections_are_forgotten() {
    let (_mesh, mut server, mut client) = pair("server.data=7000/tcp");
    serve(&server, 7000, answer_after_the_end);
    let exchange = || {
        let mut stream = dial(&client, server.at(7000));
        stream.write_all(b"x").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    exchange();
    (0..100).for_each(|_| exchange());
    let active = |workload: &Workload| {
        workload
            .sidecar
            .metrics()
            .sum("sidewind_connections_active", &[("protocol", "tcp")])
    };
    eventually("no connection is active", PATIENCE, || {
        (active(&client) + active(&server) == 0.0).then_some(())
    });
    let (ours, theirs) = (
        client.sidecar.process().open_files(),
        server.sidecar.process().open_files(),
    );
    assert!(
        ours < 60 && theirs < 60,
        "{ours} and {theirs} files are open"
    );
}

/// Answers the head of a request with what was received, byte for byte.
fn repeat_the_head(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.extend(byte);
    }
    let _ = stream.write_all(&head);
}

#[test]
fn requests_to_an_http_proxy_of_the_workloads_own_pass_as_they_are() {
    let (_mesh, server, client) = pair("server.data=3128");
    serve(&server, 3128, repeat_the_head);
    let requests = [
        "GET http://elsewhere.example/path HTTP/1.1\r\nHOST: elsewhere.example\r\n\
         Proxy-Connection: keep-alive\r\nX-Forwarded-Client-Cert: not ours\r\n\r\n",
        "CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\
         Proxy-Authorization: Basic c2VjcmV0\r\n\r\n",
    ];
    for request in requests {
        let mut stream = dial(&client, server.at(3128));
        stream.write_all(request.as_bytes()).unwrap();
        let mut received = vec![0; request.len()];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(String::from_utf8_lossy(&received), request);
    }
    let log = eventually("both are recorded", PATIENCE, || {
        let log = client.sidecar.access_log();
        (log.len() >= requests.len()).then_some(log)
    });
    for record in log {
        assert!(!record.is_request() && record.tls(), "{record}");
        assert_eq!(record.destination_id(), server.spiffe_id, "{record}");
    }
}
