//! The rules for `nft`, in a table of our own that one transaction replaces.

use std::fmt::Write as _;

use super::tool::{self, RedirectError};
use crate::config::RedirectConfig;

/// Adding the table first makes deleting it succeed whether it was there or not.
const REMOVAL: &str = "add table inet sidewind\ndelete table inet sidewind\n";

pub(super) fn apply(config: &RedirectConfig) -> Result<(), RedirectError> {
    tool::run("nft", &["-f", "-"], &rules(config)).map(drop)
}

pub(super) fn remove() -> Result<(), RedirectError> {
    tool::run("nft", &["-f", "-"], removal()).map(drop)
}

pub(super) fn removal() -> &'static str {
    REMOVAL
}

/// The whole table. `return` in a base chain means that the connection goes on as it was.
pub(super) fn rules(config: &RedirectConfig) -> String {
    format!(
        "{REMOVAL}table inet sidewind {{\n{}{}}}\n",
        outbound(config),
        inbound(config)
    )
}

fn outbound(config: &RedirectConfig) -> String {
    let mut chain = String::from("  chain outbound {\n");
    // -100 is the priority of destination NAT (netfilter_ipv4.h).
    chain.push_str("    type nat hook output priority -100; policy accept;\n");
    let _ = writeln!(chain, "    meta skuid {} return", config.uid);
    if let Some(gid) = config.gid {
        let _ = writeln!(chain, "    meta skgid {gid} return");
    }
    // Whatever stays on this machine, the workload's own addresses included, is routed over lo.
    chain.push_str("    oifname \"lo\" return\n");
    chain.push_str("    ip daddr 127.0.0.0/8 return\n    ip6 daddr ::1 return\n");
    push_ports(&mut chain, &config.exclude_outbound_ports);
    for cidr in &config.exclude_outbound_cidrs {
        let family = if cidr.is_ipv4() { "ip" } else { "ip6" };
        let _ = writeln!(chain, "    {family} daddr {cidr} return");
    }
    let (first, last) = super::LOOPBACK;
    let _ = writeln!(
        chain,
        "    meta nfproto ipv4 meta l4proto tcp dnat ip to {first}-{last}:{port}\n    \
         meta l4proto tcp redirect to :{port}\n  }}",
        port = config.outbound_port
    );
    chain
}

fn inbound(config: &RedirectConfig) -> String {
    let mut chain = String::from("  chain inbound {\n");
    chain.push_str("    type nat hook prerouting priority -100; policy accept;\n");
    chain.push_str("    iifname \"lo\" return\n");
    // What is only routed through this namespace (nested containers) is not for the workload.
    chain.push_str("    fib daddr type != local return\n");
    push_ports(&mut chain, &config.exclude_inbound_ports);
    let _ = writeln!(
        chain,
        "    meta l4proto tcp redirect to :{}\n  }}",
        config.inbound_port
    );
    chain
}

fn push_ports(chain: &mut String, ports: &[u16]) {
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let _ = writeln!(chain, "    tcp dport {{ {} }} return", ports.join(", "));
    }
}
