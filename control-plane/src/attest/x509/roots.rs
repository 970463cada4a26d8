//! The root certificates of an authority.

use crate::https::client::read_bounded;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most bytes of a file of roots, and most roots in it.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_ROOTS: usize = 32;

/// Roots, read anew for each proof: they change, and proofs are few.
#[derive(Debug)]
pub(super) struct Roots(Vec<Root>);

/// A root, with what rustls-webpki forgets of it.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    not_before: i64,
    not_after: i64,
    /// Most intermediates below it.
    pub(super) path_length: usize,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootsError {
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} {problem}", path.display())]
    Content {
        path: PathBuf,
        problem: &'static str,
    },
}

impl Roots {
    pub(super) async fn read(path: &Path) -> Result<Self, RootsError> {
        let pem = read_bounded(path, MAX_FILE_BYTES).await;
        let pem = pem.map_err(|source| RootsError::Read {
            path: path.to_owned(),
            source,
        })?;
        parse(&pem).map_err(|problem| RootsError::Content {
            path: path.to_owned(),
            problem,
        })
    }

    /// Those that count at a time.
    pub(super) fn valid_at(&self, now: SystemTime) -> impl Iterator<Item = &Root> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let valid = move |root: &&Root| (root.not_before..=root.not_after).contains(&now);
        self.0.iter().filter(valid)
    }
}

fn parse(pem: &[u8]) -> Result<Roots, &'static str> {
    let mut roots = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|_| "is no PEM")?;
        if roots.len() == MAX_ROOTS {
            return Err("holds too many certificates");
        }
        let (rest, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| "holds a certificate that cannot be read")?;
        let constraints = certificate.basic_constraints().ok().flatten();
        let constraints = constraints.filter(|constraints| constraints.value.ca);
        let Some(constraints) = constraints.filter(|_| rest.is_empty()) else {
            return Err("holds a certificate that is no authority's");
        };
        let path_length = constraints.value.path_len_constraint;
        let path_length = path_length.map_or(usize::MAX, |length| length as usize);
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before, validity.not_after);
        roots.push(Root {
            not_before: not_before.timestamp(),
            not_after: not_after.timestamp(),
            path_length,
            der: der.clone(),
        });
    }
    if roots.is_empty() {
        return Err("holds no certificate");
    }
    Ok(Roots(roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_all_roots_is_no_file_of_roots() {
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default();
        let leaf = leaf.self_signed(&key).unwrap().pem();
        for (pem, problem) in [
            (String::new(), "no certificate"),
            ("text".to_owned(), "no certificate"),
            (leaf.clone(), "no authority's"),
            (leaf.replace("MII", "MIX"), "no"),
            (format!("{leaf}{leaf}"), "no authority's"),
        ] {
            let error = parse(pem.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
