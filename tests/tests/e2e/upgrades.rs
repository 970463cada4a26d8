//! Upgraded connections, WebSockets say: what ends at one end ends at the other, and what breaks breaks.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::PATIENCE;
use socket2::SockRef;

use crate::bad_input::send;

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// How a connection ended, as one end saw it: by an orderly end, or by an error.
type End = Result<usize, ErrorKind>;

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn serve(listener: &TcpListener, ends: &SyncSender<End>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let path = read_head(&mut stream);
        let switch = format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}hello");
        stream.write_all(switch.as_bytes()).unwrap();
        // A reset takes away what has not been read yet: each end says that it has read everything.
        stream.read_exact(&mut [0]).unwrap();
        if path.starts_with("GET /breaks ") {
            reset(stream);
        } else if path.starts_with("GET /ends ") {
            drop(stream);
        } else {
            stream.write_all(b"!").unwrap();
            let end = stream.read(&mut [0; 16]).map_err(|error| error.kind());
            ends.send(end).unwrap();
        }
    }
}

fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    SockRef::from(&stream).set_linger(linger).unwrap();
}

#[test]
fn an_upgraded_connection_ends_at_one_end_as_it_does_at_the_other() {
    let mut mesh = Mesh::plan().start();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080/http").start();
    let task = mesh.workload("airflow", "task").start();
    let outside = mesh.outsider("outside");
    let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
    let (ends, ended): (_, Receiver<End>) = sync_channel(8);
    std::thread::spawn(move || serve(&listener, &ends));
    let upgrade = |place, path: &str| {
        let asked = format!("GET {path} HTTP/1.1\r\nhost: orders-api.data\r\n{UPGRADE}");
        let mut stream = send(place, api.at(8080), asked.as_bytes());
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        stream.write_all(b"!").unwrap();
        if path.starts_with("/client") {
            stream.read_exact(&mut [0]).unwrap();
        }
        stream
    };
    let broken = Err(ErrorKind::ConnectionReset);
    for place in [&task.place, &outside.place] {
        for (path, expected) in [("/ends", Ok(0)), ("/breaks", broken)] {
            let end = upgrade(place, path).read(&mut [0; 16]);
            assert_eq!(end.map_err(|error| error.kind()), expected, "{path}");
        }
        drop(upgrade(place, "/client-ends"));
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ok(0));
        reset(upgrade(place, "/client-breaks"));
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), broken);
    }
    let record = task
        .sidecar
        .wait_for_access("the connection that broke", |record| {
            record.path() == "/breaks"
        });
    assert_eq!(record.error(), "upstream-reset", "{record}");
}
