//! `sidewind-proxy redirect`: the rules by which the kernel hands the workload's TCP connections to the proxy.
//!
//! [`nftables`] and [`iptables`] write the same rules for two tools; [`tool`] runs them. Outbound connections go to
//! the outbound port unless they are the proxy's own (by user or group id), stay on this machine, or are excluded;
//! inbound connections to the workload go to the inbound port unless they are for a port of the proxy or excluded.
//!
//! Outbound connections in IPv4 go to a loopback address that the kernel chooses by their destination's. At one address for
//! all, two connections from one port to different servers would look the same, and the kernel would give the second another
//! source port: nobody could say then which process it is of, and on a busy worker that is every fifth. (IPv6 has a
//! single loopback address.)
//!
//! Connections within the namespace are never redirected, neither out nor in: a workload that calls its own address
//! reaches itself, and what the proxy forwards to the workload does not come back.

mod iptables;
mod nftables;
mod tool;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::config::{RedirectBackend, RedirectConfig};

pub(crate) use tool::RedirectError;

/// The loopback addresses over which outbound connections are spread.
const LOOPBACK: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 255, 254));

/// Sets up redirection in this network namespace, removes it, or (as the configuration says) only writes down what
/// would be done. Gives back what to print.
///
/// # Errors
/// [`RedirectError`], with the remedy; nothing is half done, except that IPv4 and IPv6 are two steps with iptables.
pub(crate) fn run(config: &RedirectConfig) -> Result<String, RedirectError> {
    if config.dry_run {
        return Ok(describe(config));
    }
    tool::check_capability()?;
    match (config.backend, config.remove) {
        (RedirectBackend::Nftables, false) => nftables::apply(config)?,
        (RedirectBackend::Nftables, true) => nftables::remove()?,
        (RedirectBackend::Iptables, false) => iptables::apply(config)?,
        (RedirectBackend::Iptables, true) => iptables::remove()?,
        (RedirectBackend::Auto, false) => return apply_any(config),
        (RedirectBackend::Auto, true) => remove_all()?,
    }
    Ok(summary(config, config.backend))
}

/// nftables where it works, else iptables.
fn apply_any(config: &RedirectConfig) -> Result<String, RedirectError> {
    let error = match nftables::apply(config) {
        Ok(()) => return Ok(summary(config, RedirectBackend::Nftables)),
        Err(error) => error,
    };
    match iptables::apply(config) {
        Ok(()) => Ok(summary(config, RedirectBackend::Iptables)),
        Err(other) => Err(error.or(other)),
    }
}

/// Rules may be of either tool, whichever was there when they were set up.
fn remove_all() -> Result<(), RedirectError> {
    match (nftables::remove(), iptables::remove()) {
        (Err(error), Err(other)) => Err(error.or(other)),
        _ => Ok(()),
    }
}

fn summary(config: &RedirectConfig, backend: RedirectBackend) -> String {
    if config.remove {
        return "redirection removed\n".to_owned();
    }
    let backend = match backend {
        RedirectBackend::Iptables => "iptables",
        _ => "nftables",
    };
    format!(
        "redirection set up by {backend}: outbound to port {}, inbound to port {}, except for user id {}\n",
        config.outbound_port, config.inbound_port, config.uid
    )
}

/// What the tools would be given.
fn describe(config: &RedirectConfig) -> String {
    let mut text = String::new();
    if config.backend != RedirectBackend::Iptables {
        let script = if config.remove {
            nftables::removal().to_owned()
        } else {
            nftables::rules(config)
        };
        let _ = write!(text, "# nft -f -\n{script}");
    }
    if config.backend == RedirectBackend::Iptables
        || (config.backend == RedirectBackend::Auto && config.remove)
    {
        for family in iptables::Family::ALL {
            let script = if config.remove {
                iptables::removal("")
            } else {
                iptables::rules(config, family, "")
            };
            let _ = write!(text, "# {}\n{script}", family.restore_command());
        }
    }
    text
}

#[cfg(test)]
mod tests;
