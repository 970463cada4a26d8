//! The rules for `iptables-restore` and `ip6tables-restore`, in chains of our own: one transaction for each family.

use std::fmt::Write as _;
use std::path::Path;

use super::tool::{self, RedirectError};
use crate::config::RedirectConfig;

const OUTBOUND: &str = "SIDEWIND_OUTBOUND";
const INBOUND: &str = "SIDEWIND_INBOUND";

/// How long to wait for another process that is changing the tables, in seconds.
const LOCK_WAIT: &str = "5";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn list_tool(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn restore_tool(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    pub(super) fn restore_command(self) -> String {
        format!("{} --noflush", self.restore_tool())
    }

    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.0/8",
            Self::V6 => "::1/128",
        }
    }

    /// A kernel without IPv6 has no IPv6 connections that would need rules.
    fn exists(self) -> bool {
        self == Self::V4 || Path::new("/proc/net/if_inet6").exists()
    }
}

pub(super) fn apply(config: &RedirectConfig) -> Result<(), RedirectError> {
    for family in Family::ALL.into_iter().filter(|family| family.exists()) {
        let present = list(family)?;
        restore(family, &rules(config, family, &present))?;
    }
    Ok(())
}

pub(super) fn remove() -> Result<(), RedirectError> {
    for family in Family::ALL.into_iter().filter(|family| family.exists()) {
        let present = list(family)?;
        if present.contains("SIDEWIND_") {
            restore(family, &removal(&present))?;
        }
    }
    Ok(())
}

fn list(family: Family) -> Result<String, RedirectError> {
    tool::run(
        family.list_tool(),
        &["-w", LOCK_WAIT, "-t", "nat", "-S"],
        "",
    )
}

fn restore(family: Family, rules: &str) -> Result<(), RedirectError> {
    tool::run(
        family.restore_tool(),
        &["-w", LOCK_WAIT, "--noflush"],
        rules,
    )
    .map(drop)
}

/// What to give `iptables-restore`. `present` is what `iptables -t nat -S` lists now; naming a chain empties it, so
/// that doing this again replaces the rules.
pub(super) fn rules(config: &RedirectConfig, family: Family, present: &str) -> String {
    let mut text = format!("*nat\n:{OUTBOUND} - [0:0]\n:{INBOUND} - [0:0]\n");
    push_jump_removals(&mut text, present);
    outbound(&mut text, config, family);
    inbound(&mut text, config);
    // In the first place, so that no other rule takes a connection before ours has judged it.
    let _ = writeln!(text, "-I OUTPUT 1 -p tcp -j {OUTBOUND}");
    let _ = writeln!(text, "-I PREROUTING 1 -p tcp -j {INBOUND}");
    text.push_str("COMMIT\n");
    text
}

/// What to give `iptables-restore` so that nothing of ours is left.
pub(super) fn removal(present: &str) -> String {
    let mut text = format!("*nat\n:{OUTBOUND} - [0:0]\n:{INBOUND} - [0:0]\n");
    push_jump_removals(&mut text, present);
    let _ = write!(text, "-X {OUTBOUND}\n-X {INBOUND}\nCOMMIT\n");
    text
}

/// Deletes the jumps into our chains that are there, each as often as it is there.
fn push_jump_removals(text: &mut String, present: &str) {
    for line in present.lines() {
        let Some(rule) = line.strip_prefix("-A ") else {
            continue;
        };
        let from_builtin = rule.starts_with("OUTPUT ") || rule.starts_with("PREROUTING ");
        let into_ours = [OUTBOUND, INBOUND]
            .iter()
            .any(|chain| rule.ends_with(&format!("-j {chain}")));
        if from_builtin && into_ours {
            let _ = writeln!(text, "-D {rule}");
        }
    }
}

fn outbound(text: &mut String, config: &RedirectConfig, family: Family) {
    let mut rule = |matching: &str, target: &str| {
        let _ = writeln!(text, "-A {OUTBOUND} {matching} -j {target}");
    };
    rule(&format!("-m owner --uid-owner {}", config.uid), "RETURN");
    if let Some(gid) = config.gid {
        rule(&format!("-m owner --gid-owner {gid}"), "RETURN");
    }
    // Whatever stays on this machine, the workload's own addresses included, is routed over lo.
    rule("-o lo", "RETURN");
    rule(&format!("-d {}", family.loopback()), "RETURN");
    for port in &config.exclude_outbound_ports {
        rule(&format!("-p tcp --dport {port}"), "RETURN");
    }
    for cidr in &config.exclude_outbound_cidrs {
        if cidr.is_ipv4() == (family == Family::V4) {
            rule(&format!("-d {cidr}"), "RETURN");
        }
    }
    let port = config.outbound_port;
    let (first, last) = super::LOOPBACK;
    let target = match family {
        Family::V4 => format!("DNAT --to-destination {first}-{last}:{port}"),
        Family::V6 => format!("REDIRECT --to-ports {port}"),
    };
    rule("-p tcp", &target);
}

fn inbound(text: &mut String, config: &RedirectConfig) {
    let mut rule = |matching: &str, target: &str| {
        let _ = writeln!(text, "-A {INBOUND} {matching} -j {target}");
    };
    rule("-i lo", "RETURN");
    // What is only routed through this namespace (nested containers) is not for the workload.
    rule("-m addrtype ! --dst-type LOCAL", "RETURN");
    for port in &config.exclude_inbound_ports {
        rule(&format!("-p tcp --dport {port}"), "RETURN");
    }
    rule(
        "-p tcp",
        &format!("REDIRECT --to-ports {}", config.inbound_port),
    );
}
