//! The servers of the demo: plain programs with nothing of a mesh in them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

/// Runs the API until it is killed.
pub(crate) fn api(address: SocketAddr) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("{address}: {error}"))?;
        loop {
            let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
            let _ = stream.set_nodelay(true);
            let service =
                service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    })
}

fn answer<B>(request: &Request<B>) -> Response<Full<Bytes>> {
    static FLAKY: AtomicU32 = AtomicU32::new(1);
    let (status, text) = match request.uri().path() {
        "/orders" => (
            200,
            "[{\"id\": 1, \"item\": \"anemometer\", \"secret\": \"canary\"}]\n",
        ),
        "/flaky" if FLAKY.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) => {
            (503, "busy, try again\n")
        }
        "/flaky" => (200, "done\n"),
        _ => (404, "no such thing\n"),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}

/// Runs a server of Redis' protocol (RESP2) until it is killed: PING, SET and GET.
pub(crate) fn redis(address: SocketAddr) -> Result<(), String> {
    let listener = TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = converse(stream);
        });
    }
    Ok(())
}

static STORE: LazyLock<Mutex<HashMap<Vec<u8>, Vec<u8>>>> = LazyLock::new(Mutex::default);

fn converse(stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(words) = read_command(&mut reader)? {
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match words.as_slice() {
            [name] if name.eq_ignore_ascii_case(b"PING") => b"+PONG\r\n".to_vec(),
            [name, key, value] if name.eq_ignore_ascii_case(b"SET") => {
                store.insert(key.clone(), value.clone());
                b"+OK\r\n".to_vec()
            }
            [name, key] if name.eq_ignore_ascii_case(b"GET") => match store.get(key) {
                Some(value) => {
                    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
                }
                None => b"$-1\r\n".to_vec(),
            },
            _ => b"-ERR unknown command\r\n".to_vec(),
        };
        writer.write_all(&answer)?;
    }
    Ok(())
}

/// An array of bulk strings; none at the end of the connection.
fn read_command(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Vec<Vec<u8>>>> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let number = |reader: &mut BufReader<TcpStream>, mark: char| {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let number = line
            .strip_prefix(mark)
            .and_then(|number| number.trim_end().parse::<usize>().ok());
        number
            .filter(|number| *number < 4096)
            .map(Some)
            .ok_or_else(invalid)
    };
    let Some(count) = number(reader, '*')? else {
        return Ok(None);
    };
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(reader, '$')?.ok_or_else(invalid)?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word)?;
        word.truncate(length);
        words.push(word);
    }
    Ok(Some(words))
}
