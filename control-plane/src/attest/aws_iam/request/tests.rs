use super::super::testing::{
    DATE, SERVER, SIGNED, authorization, evidence, header, region, set, signed_at, taken,
};
use super::*;

const KEY_HASH: &str = "6c7fcc6ee3a0b48dea4a8b9a3a3b0c4a1d7f1f0a1a2b3c4d5e6f708192a3b4c5";

fn binding() -> Binding<'static> {
    Binding {
        server_id: SERVER,
        key_sha256: KEY_HASH,
        now: signed_at() + Duration::from_secs(2),
    }
}

fn judged(evidence: &v1::AwsIam) -> Result<Vec<(&'static str, String)>, String> {
    let regions = [taken("eu-west-1", None)];
    check(evidence, &regions, binding()).map(|signed| signed.headers)
}

#[test]
fn a_request_bound_to_us_is_taken_and_written_anew() {
    let regions = [taken("us-east-1", None), taken("eu-west-1", None)];
    let evidence = evidence("nonce", KEY_HASH);
    let signed = check(&evidence, &regions, binding()).unwrap();
    assert_eq!(
        (signed.from.region.name(), signed.nonce),
        ("eu-west-1", "nonce")
    );
    let names: Vec<&str> = signed.headers.iter().map(|(name, _)| *name).collect();
    assert_eq!(names[0], "authorization");
    assert_eq!(names.len(), 7);
    assert!(!names.contains(&"host") && !names.contains(&"accept"));
}

#[test]
fn a_spelling_of_a_header_that_http_takes_for_the_same_is_the_same() {
    let mut evidence = evidence("nonce", KEY_HASH);
    for header in &mut evidence.headers {
        header.name = header.name.to_uppercase();
    }
    evidence.headers.push(header(("Host", region().host())));
    let body_sha256 = hex(&sha256(BODY.as_bytes()));
    evidence
        .headers
        .push(header(("X-Amz-Content-SHA256", &body_sha256)));
    let signed = SIGNED.replace("host;", "host;x-amz-content-sha256;");
    set(
        &mut evidence,
        "AUTHORIZATION",
        Some(&authorization("20260822", "eu-west-1", &signed)),
    );
    let headers = judged(&evidence).unwrap();
    assert!(
        headers
            .iter()
            .all(|(name, _)| name.chars().all(|c| !c.is_uppercase()))
    );
}

type Change = Box<dyn Fn(&mut v1::AwsIam)>;

fn with(name: &'static str, value: &str) -> Change {
    let value = value.to_owned();
    Box::new(move |evidence| set(evidence, name, Some(&value)))
}

fn without(name: &'static str) -> Change {
    Box::new(move |evidence| set(evidence, name, None))
}

fn added(name: &'static str, value: &'static str) -> Change {
    Box::new(move |evidence| evidence.headers.push(header((name, value))))
}

fn in_region(region: &'static str) -> Change {
    Box::new(move |evidence| evidence.region = region.to_owned())
}

fn signing(signed: &str) -> Change {
    with(
        "authorization",
        &authorization("20260822", "eu-west-1", signed),
    )
}

fn with_body(body: &'static str) -> Change {
    Box::new(move |evidence| evidence.body = body.into())
}

fn refused_for(changes: Vec<(Change, &str)>) {
    for (index, (change, why)) in changes.into_iter().enumerate() {
        let mut evidence = evidence("nonce", KEY_HASH);
        change(&mut evidence);
        let error = judged(&evidence).expect_err(why);
        assert!(error.contains(why), "{index}, {why}: {error}");
    }
}

#[test]
fn requests_that_lead_elsewhere_are_refused() {
    refused_for(vec![
        (in_region("us-east-1"), "not taken"),
        (in_region(""), "not taken"),
        (in_region("EU-WEST-1"), "not taken"),
        (in_region("eu-west-1.amazonaws.com.evil/#"), "not taken"),
        (in_region("eu-west-1@evil"), "not taken"),
        (in_region("evil#eu-west-1"), "not taken"),
        (added("host", "sts.amazonaws.com.evil"), "host is not"),
        (
            added("host", "sts.eu-west-1.amazonaws.com@evil"),
            "host is not",
        ),
        (
            added("host", "sts.eu-west-1.amazonaws.com:443"),
            "host is not",
        ),
        (
            with(
                "authorization",
                &authorization("20260822", "us-east-1", SIGNED),
            ),
            "another region",
        ),
        (
            with(
                "authorization",
                &authorization("20260822", "eu-west-1", SIGNED).replace("/sts/", "/iam/"),
            ),
            "scope",
        ),
    ]);
}

#[test]
fn bodies_that_ask_for_something_else_are_refused() {
    refused_for(vec![
        (with_body(""), "body"),
        (with_body("Action=GetCallerIdentity"), "body"),
        (
            with_body("Version=2011-06-15&Action=GetCallerIdentity"),
            "body",
        ),
        (
            with_body("Action=GetCallerIdentity&Version=2011-06-15&Action=AssumeRole"),
            "body",
        ),
        (
            with_body("Action=GetCallerIdentity&Version=2011-06-15&action=x"),
            "body",
        ),
        (with_body("Action=AssumeRole&Version=2011-06-15"), "body"),
        (
            with_body("Action=GetCallerIdentity&Version=2011-06-15\r\nx"),
            "body",
        ),
        (with("content-type", "application/json"), "content-type"),
        (
            with(
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-7",
            ),
            "content-type",
        ),
    ]);
}

#[test]
fn headers_beside_the_known_ones_are_refused() {
    refused_for(vec![
        (added("accept", "application/json"), "accept is not taken"),
        (added("transfer-encoding", "chunked"), "not taken"),
        (added("connection", "x-sidewind-nonce"), "not taken"),
        (added("content-length", "1"), "not taken"),
        (added("x-forwarded-host", "evil"), "not taken"),
        (added("x-amz-target", "x"), "not taken"),
        (added("x-sidewind-nonce ", "nonce"), "not taken"),
        (added("x_sidewind_nonce", "nonce"), "not taken"),
        (added("", "x"), "not taken"),
        (added("x-sidewind-nonce", "nonce"), "twice"),
        (added("X-Sidewind-Nonce", "other"), "twice"),
        (added("Authorization", "AWS4-HMAC-SHA256 x"), "twice"),
        (
            Box::new(|evidence| evidence.headers = vec![header(("host", "x")); 1000]),
            "too many",
        ),
    ]);
}

#[test]
fn values_that_could_break_a_request_are_refused() {
    refused_for(vec![
        (with("x-amz-security-token", ""), "cannot be sent"),
        (with("x-amz-security-token", " token"), "cannot be sent"),
        (
            with("x-amz-security-token", "token\r\naccept: application/json"),
            "cannot be sent",
        ),
        (with("x-amz-security-token", "token\0"), "cannot be sent"),
        (with("x-amz-security-token", "t\u{f6}ken"), "cannot be sent"),
        (
            with("x-amz-security-token", &"t".repeat(MAX_VALUE_BYTES + 1)),
            "cannot be sent",
        ),
        (with("x-amz-security-token", "two words"), "another value"),
        (
            with("authorization", &"A".repeat(1 << 20)),
            "cannot be sent",
        ),
    ]);
    let mut long = evidence("nonce", KEY_HASH);
    set(
        &mut long,
        "x-amz-security-token",
        Some(&"t".repeat(MAX_VALUE_BYTES)),
    );
    assert!(judged(&long).is_ok());
}

#[test]
fn what_binds_the_request_must_be_ours_and_signed() {
    let unsigned = |name: &str| {
        let names: Vec<&str> = SIGNED.split(';').filter(|other| *other != name).collect();
        signing(&names.join(";"))
    };
    refused_for(vec![
        (
            with("x-sidewind-server-id", "sidewind://example.com"),
            "another control plane",
        ),
        (
            with("x-sidewind-server-id", "sidewind://example.org/"),
            "another control plane",
        ),
        (with("x-sidewind-key", &KEY_HASH.to_uppercase()), "key"),
        (with("x-sidewind-key", &KEY_HASH.replace('6', "7")), "key"),
        (without("x-sidewind-server-id"), "missing"),
        (without("x-sidewind-nonce"), "missing"),
        (without("x-sidewind-key"), "missing"),
        (without("x-amz-date"), "missing"),
        (without("authorization"), "missing"),
        (without("x-amz-security-token"), "signed and not there"),
        (unsigned("x-sidewind-server-id"), "not signed"),
        (unsigned("x-sidewind-nonce"), "not signed"),
        (unsigned("x-sidewind-key"), "not signed"),
        (unsigned("x-amz-date"), "not signed"),
        (unsigned("x-amz-security-token"), "not signed"),
        (unsigned("content-type"), "not signed"),
        (unsigned("host"), "not signed"),
        (signing(&format!("{SIGNED};x-sidewind-zone")), "not there"),
        (
            signing(&SIGNED.replace(
                "x-sidewind-key;x-sidewind-nonce",
                "x-sidewind-nonce;x-sidewind-key",
            )),
            "sorted",
        ),
        (
            signing(&SIGNED.replace("x-sidewind-key", "X-Sidewind-Key")),
            "lower case",
        ),
    ]);
}

#[test]
fn the_request_is_good_for_five_minutes_by_our_clock() {
    let good = evidence("nonce", KEY_HASH);
    let regions = [taken("eu-west-1", None)];
    let at = |now: SystemTime| check(&good, &regions, Binding { now, ..binding() }).map(|_| ());
    let five_minutes = Duration::from_secs(300);
    for now in [signed_at() + five_minutes, signed_at() - five_minutes] {
        assert_eq!(at(now), Ok(()));
    }
    let just_over = five_minutes + Duration::from_secs(1);
    for now in [signed_at() + just_over, signed_at() - just_over] {
        assert!(at(now).unwrap_err().contains("clocks"));
    }
    refused_for(vec![
        (with("x-amz-date", "20260821T100000Z"), "another day"),
        (
            with(
                "authorization",
                &authorization("20260821", "eu-west-1", SIGNED),
            ),
            "another day",
        ),
        (with("x-amz-date", "20260822T100000"), "not a time"),
        (with("x-amz-date", "20260822T100000+"), "not a time"),
        (with("x-amz-date", "2026-08-22T10:00"), "not a time"),
        (with("x-amz-date", "20260822T106000Z"), "not a time"),
        (with("x-amz-date", "20261322T100000Z"), "not a time"),
        (with("x-amz-date", "-0260822T100000Z"), "not a time"),
        (with("x-amz-date", "20260822 100000Z"), "not a time"),
    ]);
    assert_eq!(DATE.len(), 16);
}

#[test]
fn a_wrong_statement_about_the_body_is_refused() {
    let mut evidence = evidence("nonce", KEY_HASH);
    set(
        &mut evidence,
        "x-amz-content-sha256",
        Some("UNSIGNED-PAYLOAD"),
    );
    let signed = SIGNED.replace("host;", "host;x-amz-content-sha256;");
    set(
        &mut evidence,
        "authorization",
        Some(&authorization("20260822", "eu-west-1", &signed)),
    );
    assert!(
        judged(&evidence)
            .unwrap_err()
            .contains("x-amz-content-sha256")
    );
}

proptest::proptest! {
    #[test]
    fn no_evidence_makes_the_checks_panic(
        date in "\\PC{0,16}|[0-9TZ]{16}",
        authorization in "\\PC{0,80}|AWS4-HMAC-SHA256 [A-Za-z=/, ;0-9]{0,80}",
        name in "\\PC{0,20}",
    ) {
        let mut evidence = evidence("nonce", KEY_HASH);
        set(&mut evidence, "x-amz-date", Some(&date));
        proptest::prop_assert!(date == DATE || judged(&evidence).is_err());
        set(&mut evidence, "authorization", Some(&authorization));
        evidence.headers.push(header((&name, "x")));
        proptest::prop_assert!(judged(&evidence).is_err());
    }
}
