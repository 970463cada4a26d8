//! Running `nft` and `iptables`, and saying plainly why they could not do what they were told.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The bit of `CAP_NET_ADMIN` (capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Where the tools are when `PATH` does not say (it has no `sbin` for most users).
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Why redirection was not set up or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedirectError {
    #[error(
        "redirect needs the NET_ADMIN capability in this network namespace; run it as root, or grant it to the \
         init container (securityContext.capabilities.add: [NET_ADMIN])"
    )]
    NotPermitted,
    #[error("{0} was not found; install nftables or iptables in the image")]
    NotFound(String),
    #[error("neither nft nor iptables was found; install nftables or iptables in the image")]
    NeitherFound,
    #[error("{tool} failed: {message}")]
    Failed { tool: String, message: String },
    #[error("{tool} cannot be run: {source}")]
    NotRun {
        tool: String,
        source: std::io::Error,
    },
    #[error("{first}; {second}")]
    Both {
        first: Box<RedirectError>,
        second: Box<RedirectError>,
    },
}

impl RedirectError {
    /// What to say when the second tool failed too.
    pub(super) fn or(self, second: Self) -> Self {
        match (self, second) {
            (Self::NotFound(_), Self::NotFound(_)) => Self::NeitherFound,
            (Self::NotFound(_), error) | (error, Self::NotFound(_)) => error,
            (Self::NotPermitted, _) | (_, Self::NotPermitted) => Self::NotPermitted,
            (first, second) => Self::Both {
                first: Box::new(first),
                second: Box::new(second),
            },
        }
    }
}

/// # Errors
/// [`RedirectError::NotPermitted`] when this process lacks `CAP_NET_ADMIN`.
pub(super) fn check_capability() -> Result<(), RedirectError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match has_net_admin(&status) {
        // Without /proc the tools themselves will say.
        None | Some(true) => Ok(()),
        Some(false) => Err(RedirectError::NotPermitted),
    }
}

/// Reads the effective capabilities of `/proc/self/status`.
fn has_net_admin(status: &str) -> Option<bool> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(capabilities & (1 << CAP_NET_ADMIN) != 0)
}

/// Runs a tool with `input` on its standard input, and gives back what it wrote to standard output.
pub(super) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, RedirectError> {
    let path = find(tool).ok_or_else(|| RedirectError::NotFound(tool.to_owned()))?;
    let not_run = |source| RedirectError::NotRun {
        tool: tool.to_owned(),
        source,
    };
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends before it has read everything says why on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(not_run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(tool, &String::from_utf8_lossy(&output.stderr)))
}

fn failure(tool: &str, stderr: &str) -> RedirectError {
    if stderr.contains("Operation not permitted") || stderr.contains("Permission denied") {
        return RedirectError::NotPermitted;
    }
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    RedirectError::Failed {
        tool: tool.to_owned(),
        message: if lines.is_empty() {
            "it gave no reason".to_owned()
        } else {
            lines.join(" ")
        },
    }
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            SYSTEM_DIRECTORIES
                .iter()
                .map(|directory| Path::new(directory).to_path_buf()),
        )
        .map(|directory| directory.join(tool))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_admin_is_read_from_the_effective_capabilities() {
        for (status, expected) in [
            ("Name:\tx\nCapEff:\t0000000000001000\n", Some(true)),
            ("CapEff:\t000001ffffffffff", Some(true)),
            ("CapEff:\t000001ffffffefff", Some(false)),
            (
                "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000",
                Some(false),
            ),
            ("Name:\tx\n", None),
        ] {
            assert_eq!(has_net_admin(status), expected, "{status}");
        }
    }

    #[test]
    fn a_failure_says_which_capability_is_missing() {
        let error = failure(
            "nft",
            "netlink: Error: cache initialization failed: Operation not permitted\n",
        );
        assert!(error.to_string().contains("NET_ADMIN"), "{error}");
        let error = failure("nft", "Error: syntax error\n  on line 1\n");
        assert_eq!(
            error.to_string(),
            "nft failed: Error: syntax error on line 1"
        );
    }

    #[test]
    fn a_missing_tool_is_named_and_the_other_tools_failure_counts_more() {
        let missing = || run("sidewind-no-such-tool", &[], "").unwrap_err();
        assert!(
            missing()
                .to_string()
                .contains("sidewind-no-such-tool was not found")
        );
        assert!(matches!(
            missing().or(missing()),
            RedirectError::NeitherFound
        ));
        let failed = missing().or(failure("iptables", "why"));
        assert_eq!(failed.to_string(), "iptables failed: why");
        let both = failure("nft", "a").or(failure("iptables", "b"));
        assert_eq!(both.to_string(), "nft failed: a; iptables failed: b");
    }
}
