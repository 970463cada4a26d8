use std::path::Path;

use super::*;

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// A certificate for these names, and its key.
fn pair(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn write(directory: &Path, name: &str, (certificate, key): &(String, String)) {
    let directory = directory.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("tls.crt"), certificate).unwrap();
    std::fs::write(directory.join("tls.key"), key).unwrap();
}

fn look(certificates: &mut Certificates, names: &[&str]) -> (bool, u64, u64) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let looked = certificates.look(&names, &provider());
    (looked.changed, looked.loaded, looked.refused)
}

fn leaf(certificates: &Certificates, name: &str) -> Vec<u8> {
    certificates.get(name).unwrap().key.cert[0].to_vec()
}

#[test]
fn a_changed_pair_is_taken_and_one_that_cannot_be_used_never_replaces_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut certificates = Certificates::new(Some(at.to_owned()));
    write(at, "web", &pair(&["web.example.com"]));
    assert_eq!(look(&mut certificates, &["web"]), (true, 1, 0));
    assert_eq!(look(&mut certificates, &["web"]), (false, 0, 0));
    let first = leaf(&certificates, "web");
    let second = pair(&["web.example.com", "*.example.com"]);
    write(at, "web", &second);
    assert_eq!(look(&mut certificates, &["web"]), (true, 1, 0));
    let good = leaf(&certificates, "web");
    assert_ne!(good, first);

    let expired = {
        let mut parameters = rcgen::CertificateParams::new(vec!["web.example.com".into()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        (
            parameters.self_signed(&key).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let no_names = {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        (
            parameters.self_signed(&key).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let other = pair(&["web.example.com"]);
    let bad = [
        (other.0.clone(), second.1.clone(), "is not the key"),
        (other.0.clone(), String::new(), "is not in PEM"),
        (String::new(), other.1.clone(), "0 certificates"),
        (other.1.clone(), other.1.clone(), "0 certificates"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            other.1.clone(),
            "no certificate",
        ),
        (expired.0, expired.1, "has expired"),
        (no_names.0, no_names.1, "no DNS name"),
        (" ".repeat(300 * 1024), other.1.clone(), "too large"),
    ];
    for (certificate, key, problem) in bad {
        write(at, "web", &(certificate, key));
        let (changed, loaded, refused) = look(&mut certificates, &["web"]);
        assert_eq!((changed, loaded, refused), (false, 0, 1), "{problem}");
        assert_eq!(
            look(&mut certificates, &["web"]),
            (false, 0, 0),
            "said once"
        );
        assert_eq!(leaf(&certificates, "web"), good, "{problem}");
        let problems: Vec<_> = certificates.problems().collect();
        assert!(
            matches!(problems[..], [("web", text)] if text.contains(problem)),
            "{problems:?}"
        );
    }
    std::fs::remove_dir_all(at.join("web")).unwrap();
    assert_eq!(look(&mut certificates, &["web"]), (false, 0, 1));
    assert_eq!(leaf(&certificates, "web"), good);
    write(at, "web", &other);
    assert_eq!(look(&mut certificates, &["web"]), (true, 1, 0));
    assert_eq!(certificates.problems().count(), 0);
    assert!(certificates.first_end().unwrap() > SystemTime::now());
}

#[test]
fn what_no_listener_names_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        write(directory.path(), name, &pair(&["a.example.com"]));
    }
    let mut certificates = Certificates::new(Some(directory.path().to_owned()));
    assert_eq!(look(&mut certificates, &["one", "two"]), (true, 2, 0));
    look(&mut certificates, &["two"]);
    assert!(certificates.get("one").is_none() && certificates.get("two").is_some());
}

#[test]
fn without_a_directory_there_is_no_certificate_and_a_remedy() {
    let mut certificates = Certificates::new(None);
    look(&mut certificates, &["web"]);
    let problems: Vec<_> = certificates.problems().collect();
    assert_eq!(
        problems,
        [("web", "--gateway-certificates names no directory")]
    );
}
