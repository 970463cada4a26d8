//! The clients of the demo, for machines that have neither curl nor redis-cli.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(20);

/// One GET, printed as `curl -i` does.
pub(crate) fn http(url: &str, headers: &[String]) -> Result<(), String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// URLs")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let proxy = std::env::var("http_proxy").ok();
    let (target, asked) = match proxy
        .as_deref()
        .and_then(|proxy| proxy.strip_prefix("http://"))
    {
        Some(proxy) => (proxy.trim_end_matches('/').to_owned(), url.to_owned()),
        None if authority.contains(':') => (authority.to_owned(), path.to_owned()),
        None => (format!("{authority}:80"), path.to_owned()),
    };
    let mut stream = connect(&target)?;
    let mut request = format!("GET {asked} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    let answer = exchange(&mut stream, format!("{request}\r\n").as_bytes())?;
    std::io::stdout()
        .write_all(&answer)
        .map_err(|error| error.to_string())
}

/// One command by RESP2, and the answer as it came.
pub(crate) fn redis(address: &str, words: &[String]) -> Result<(), String> {
    let mut stream = connect(address)?;
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream
        .write_all(command.as_bytes())
        .map_err(|error| error.to_string())?;
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(line.trim_end().to_owned())
    };
    let first = line()?;
    let text = match first.split_at_checked(1) {
        Some(("$", "-1")) => "(nil)".into(),
        Some(("$", _)) => line()?,
        Some(("+", text)) => text.to_owned(),
        _ => return Err(format!("not an answer of a Redis: {first:?}")),
    };
    println!("{text}");
    Ok(())
}

fn connect(target: &str) -> Result<TcpStream, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a small program that does nothing else meanwhile"
    )]
    let addresses = target
        .to_socket_addrs()
        .map_err(|error| format!("{target}: {error}"))?;
    let address = addresses
        .into_iter()
        .next()
        .ok_or_else(|| format!("{target}: no address"))?;
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .map_err(|error| format!("{target}: {error}"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    stream
        .write_all(request)
        .map_err(|error| error.to_string())?;
    stream
        .read_to_end(&mut answer)
        .map_err(|error| error.to_string())?;
    Ok(answer)
}
