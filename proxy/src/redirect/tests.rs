//! The rules as text; `proxy/tests/control_redirect.rs` lets a kernel judge them.

use super::*;

fn config(arguments: &[&str]) -> RedirectConfig {
    let arguments = ["sidewind-proxy", "redirect"].iter().chain(arguments);
    let parsed = crate::config::parse(arguments.map(Into::into), Vec::new());
    match parsed.unwrap() {
        crate::config::Invocation::Redirect(config) => config,
        other => panic!("{other:?}"),
    }
}

const EXCLUSIONS: [&str; 4] = [
    "--gid=1338",
    "--exclude-inbound-ports=22",
    "--exclude-outbound-ports=25,5432",
    "--exclude-outbound-cidrs=169.254.169.254,10.9.0.0/16,fd00:9::/32",
];

#[test]
fn the_default_rules_for_nft() {
    assert_eq!(
        nftables::rules(&config(&[])),
        r#"add table inet sidewind
delete table inet sidewind
table inet sidewind {
  chain outbound {
    type nat hook output priority -100; policy accept;
    meta skuid 1337 return
    oifname "lo" return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    meta nfproto ipv4 meta l4proto tcp dnat ip to 127.0.0.1-127.0.255.254:15001
    meta l4proto tcp redirect to :15001
  }
  chain inbound {
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" return
    fib daddr type != local return
    tcp dport { 15008, 15020 } return
    meta l4proto tcp redirect to :15006
  }
}
"#
    );
}

#[test]
fn rules_for_nft_with_exclusions() {
    let rules = nftables::rules(&config(&EXCLUSIONS));
    for expected in [
        "    meta skuid 1337 return\n    meta skgid 1338 return\n",
        "    tcp dport { 25, 5432 } return\n    ip daddr 169.254.169.254/32 return\n    \
         ip daddr 10.9.0.0/16 return\n    ip6 daddr fd00:9::/32 return\n    meta nfproto ipv4",
        "    tcp dport { 22, 15008, 15020 } return\n",
    ] {
        assert!(rules.contains(expected), "{expected}\nnot in\n{rules}");
    }
}

#[test]
fn the_default_rules_for_iptables() {
    assert_eq!(
        iptables::rules(&config(&[]), iptables::Family::V4, "-P OUTPUT ACCEPT\n"),
        "*nat
:SIDEWIND_OUTBOUND - [0:0]
:SIDEWIND_INBOUND - [0:0]
-A SIDEWIND_OUTBOUND -m owner --uid-owner 1337 -j RETURN
-A SIDEWIND_OUTBOUND -o lo -j RETURN
-A SIDEWIND_OUTBOUND -d 127.0.0.0/8 -j RETURN
-A SIDEWIND_OUTBOUND -p tcp -j DNAT --to-destination 127.0.0.1-127.0.255.254:15001
-A SIDEWIND_INBOUND -i lo -j RETURN
-A SIDEWIND_INBOUND -m addrtype ! --dst-type LOCAL -j RETURN
-A SIDEWIND_INBOUND -p tcp --dport 15008 -j RETURN
-A SIDEWIND_INBOUND -p tcp --dport 15020 -j RETURN
-A SIDEWIND_INBOUND -p tcp -j REDIRECT --to-ports 15006
-I OUTPUT 1 -p tcp -j SIDEWIND_OUTBOUND
-I PREROUTING 1 -p tcp -j SIDEWIND_INBOUND
COMMIT
"
    );
}

#[test]
fn rules_for_ip6tables_with_exclusions() {
    let rules = iptables::rules(&config(&EXCLUSIONS), iptables::Family::V6, "");
    let expected = "-A SIDEWIND_OUTBOUND -m owner --uid-owner 1337 -j RETURN
-A SIDEWIND_OUTBOUND -m owner --gid-owner 1338 -j RETURN
-A SIDEWIND_OUTBOUND -o lo -j RETURN
-A SIDEWIND_OUTBOUND -d ::1/128 -j RETURN
-A SIDEWIND_OUTBOUND -p tcp --dport 25 -j RETURN
-A SIDEWIND_OUTBOUND -p tcp --dport 5432 -j RETURN
-A SIDEWIND_OUTBOUND -d fd00:9::/32 -j RETURN
-A SIDEWIND_OUTBOUND -p tcp -j REDIRECT --to-ports 15001
";
    assert!(rules.contains(expected), "{rules}");
    assert!(!rules.contains("10.9.0.0"), "{rules}");
}

#[test]
fn jumps_that_are_there_are_taken_out_and_others_left() {
    let present = "-P PREROUTING ACCEPT
-N DOCKER_OUTPUT
-N SIDEWIND_OUTBOUND
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A OUTPUT -p tcp -j SIDEWIND_OUTBOUND
-A PREROUTING -p tcp -j SIDEWIND_INBOUND
-A SIDEWIND_OUTBOUND -o lo -j RETURN
";
    assert_eq!(
        iptables::removal(present),
        "*nat
:SIDEWIND_OUTBOUND - [0:0]
:SIDEWIND_INBOUND - [0:0]
-D OUTPUT -p tcp -j SIDEWIND_OUTBOUND
-D PREROUTING -p tcp -j SIDEWIND_INBOUND
-X SIDEWIND_OUTBOUND
-X SIDEWIND_INBOUND
COMMIT
"
    );
}

#[test]
fn a_dry_run_shows_what_the_chosen_tool_would_be_given() {
    for (arguments, commands) in [
        (vec!["--dry-run"], vec!["# nft -f -"]),
        (
            vec!["--dry-run", "--backend=iptables"],
            vec![
                "# iptables-restore --noflush",
                "# ip6tables-restore --noflush",
            ],
        ),
        (
            vec!["--dry-run", "--remove"],
            vec![
                "# nft -f -",
                "# iptables-restore --noflush",
                "# ip6tables-restore --noflush",
            ],
        ),
    ] {
        let text = run(&config(&arguments)).unwrap();
        let shown: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(shown, commands, "{arguments:?}");
    }
}
