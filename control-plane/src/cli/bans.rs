//! `ban`, `unban` and `bans`.

use super::Failure;
use super::arguments::{BanFlags, BansFlags, OutputFormat, SocketFlags, UnbanFlags};
use super::client::ask;
use super::output::timestamp;
use serde_json::{Value, json};
use sidewind_api::{Banned, v1};

pub(super) fn ban(flags: BanFlags) -> Result<(), Failure> {
    let subject = flags.subject.to_string();
    let answer = change(&flags.socket, flags.subject, flags.reason, false)?;
    println!("{subject} is banned{}", waiting(&answer));
    Ok(())
}

pub(super) fn unban(flags: UnbanFlags) -> Result<(), Failure> {
    let subject = flags.subject.to_string();
    let answer = change(&flags.socket, flags.subject, String::new(), true)?;
    println!("{subject} is no longer banned{}", waiting(&answer));
    Ok(())
}

/// Whom the change has not reached yet, should there be any.
fn waiting(answer: &v1::SetBanResponse) -> String {
    match answer.waiting_for {
        0 => String::new(),
        proxies => format!("; {proxies} connected proxies have not said yet that they know"),
    }
}

pub(super) fn list(flags: &BansFlags) -> Result<(), Failure> {
    let answer = ask(&flags.socket, async |mut client| {
        client.list_bans(v1::ListBansRequest {}).await
    })?;
    match flags.output {
        OutputFormat::Json => println!("{:#}", as_json(&answer)),
        OutputFormat::Table if answer.bans.is_empty() => println!("nothing is banned"),
        OutputFormat::Table => {
            for ban in &answer.bans {
                let since = timestamp(ban.since_unix);
                println!("{since}  {}  {}", subject(ban), ban.reason);
            }
        }
    }
    Ok(())
}

fn change(
    socket: &SocketFlags,
    banned: Banned,
    reason: String,
    lift: bool,
) -> Result<v1::SetBanResponse, Failure> {
    let ban = v1::Ban {
        subject: Some(banned.into()),
        reason,
        since_unix: 0,
    };
    let request = v1::SetBanRequest {
        ban: Some(ban),
        lift,
    };
    ask(socket, async |mut client| client.set_ban(request).await)
}

fn as_json(answer: &v1::ListBansResponse) -> Value {
    let ban = |ban: &v1::Ban| {
        json!({
            "subject": subject(ban),
            "reason": ban.reason,
            "since": timestamp(ban.since_unix),
        })
    };
    answer.bans.iter().map(ban).collect()
}

fn subject(ban: &v1::Ban) -> &str {
    match &ban.subject {
        Some(v1::ban::Subject::SpiffeId(subject) | v1::ban::Subject::Serial(subject)) => subject,
        None => "?",
    }
}
