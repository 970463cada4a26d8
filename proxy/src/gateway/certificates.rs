//! Certificates and keys from files beside the gateway: `DIR/NAME/tls.crt` and `DIR/NAME/tls.key`, as a Secret of kind
//! `kubernetes.io/tls` is mounted. Read again when they change; a pair that cannot be used never replaces one that can.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::hosts::HostPattern;

/// Most bytes of either file.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Most certificates in a chain, its leaf included.
const MAX_CHAIN: usize = 16;

/// A certificate with its key, as TLS uses it.
#[derive(Clone, Debug)]
pub(super) struct ServedCertificate {
    pub(super) key: Arc<CertifiedKey>,
    /// The names that it is for.
    pub(super) names: Vec<HostPattern>,
    pub(super) not_after: SystemTime,
}

/// What is wrong with a pair of files.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0} is too large for a certificate or key")]
    TooLarge(PathBuf),
    #[error("{path} is not in PEM, or holds nothing of what it should")]
    Pem {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{path} holds {problem}")]
    Certificate { path: PathBuf, problem: String },
    #[error(
        "{path} is not the key of the certificate beside it, or of a kind that TLS here does not know"
    )]
    Key {
        path: PathBuf,
        source: rustls::Error,
    },
}

/// The files of one certificate, as they were read last.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

/// The certificates of one directory, by name.
#[derive(Default)]
pub(super) struct Certificates {
    directory: Option<PathBuf>,
    known: BTreeMap<String, Known>,
}

/// One certificate: what was read of it last, and what is served of it.
#[derive(Default)]
struct Known {
    seen: Option<Files>,
    served: Option<ServedCertificate>,
    problem: Option<String>,
}

/// What became of the certificates when they were looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Some are other ones now.
    pub(super) changed: bool,
    /// How many were taken, and how many were not.
    pub(super) loaded: u64,
    pub(super) refused: u64,
}

impl Certificates {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            known: BTreeMap::new(),
        }
    }

    /// Reads those of these names whose files have changed, and forgets all others.
    pub(super) fn look(&mut self, names: &[String], provider: &CryptoProvider) -> Looked {
        self.known.retain(|name, _| names.contains(name));
        let mut looked = Looked::default();
        for name in names {
            let Some(directory) = &self.directory else {
                self.known.entry(name.clone()).or_default().problem =
                    Some("--gateway-certificates names no directory".to_owned());
                continue;
            };
            let directory = directory.join(name);
            let known = self.known.entry(name.clone()).or_default();
            match Files::read(&directory) {
                Ok(files) if known.seen.as_ref() == Some(&files) => {}
                Ok(files) => {
                    match files.certificate(&directory, provider) {
                        Ok(served) => {
                            tracing::info!(name, "a certificate was loaded");
                            known.served = Some(served);
                            known.problem = None;
                            looked.changed = true;
                            looked.loaded += 1;
                        }
                        Err(error) => {
                            known.complain(name, &error);
                            looked.refused += 1;
                        }
                    }
                    known.seen = Some(files);
                }
                Err(error) => {
                    // Said once, until it is another problem.
                    if known.complain(name, &error) {
                        looked.refused += 1;
                    }
                    known.seen = None;
                }
            }
        }
        looked
    }

    /// The certificate of a name, as it is served now.
    pub(super) fn get(&self, name: &str) -> Option<&ServedCertificate> {
        self.known.get(name)?.served.as_ref()
    }

    /// What is wrong with the files of each name; the last good pair, if there was one, is served all the same.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known
            .iter()
            .filter_map(|(name, known)| Some((name.as_str(), known.problem.as_deref()?)))
    }

    /// When the first of those that are served ends.
    pub(super) fn first_end(&self) -> Option<SystemTime> {
        let served = self
            .known
            .values()
            .filter_map(|known| known.served.as_ref());
        served.map(|served| served.not_after).min()
    }
}

impl Known {
    fn complain(&mut self, name: &str, error: &CertificateError) -> bool {
        let problem = crate::errors::Chain(error).to_string();
        let is_new = self.problem.as_ref() != Some(&problem);
        if is_new {
            tracing::error!(
                name,
                error = problem,
                kept = self.served.is_some(),
                "a certificate cannot be used; the one before stays, where there was one"
            );
        }
        self.problem = Some(problem);
        is_new
    }
}

impl Files {
    fn read(directory: &Path) -> Result<Self, CertificateError> {
        let read = |name: &str| {
            let path = directory.join(name);
            let failed = |source| CertificateError::Read {
                path: path.clone(),
                source,
            };
            if std::fs::metadata(&path).map_err(failed)?.len() > MAX_FILE_BYTES {
                return Err(CertificateError::TooLarge(path));
            }
            std::fs::read(&path).map_err(failed)
        };
        Ok(Self {
            certificate: read("tls.crt")?,
            key: Zeroizing::new(read("tls.key")?),
        })
    }

    fn certificate(
        &self,
        directory: &Path,
        provider: &CryptoProvider,
    ) -> Result<ServedCertificate, CertificateError> {
        let path = directory.join("tls.crt");
        let wrong = |problem: String| CertificateError::Certificate {
            path: path.clone(),
            problem,
        };
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| CertificateError::Pem {
                path: path.clone(),
                source,
            })?;
        let leaf = chain
            .first()
            .filter(|_| chain.len() <= MAX_CHAIN)
            .ok_or_else(|| {
                wrong(format!(
                    "{} certificates; 1 to {MAX_CHAIN} make a chain",
                    chain.len()
                ))
            })?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| wrong(format!("no certificate: {error}")))?;
        let names = names(&parsed);
        if names.is_empty() {
            return Err(wrong(
                "no DNS name or IP address (subjectAltName)".to_owned(),
            ));
        }
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = UNIX_EPOCH + Duration::from_secs(ends);
        if not_after < SystemTime::now() {
            return Err(wrong("a certificate that has expired".to_owned()));
        }
        let path = directory.join("tls.key");
        let key =
            PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| CertificateError::Pem {
                path: path.clone(),
                source,
            })?;
        // Compares the public keys, too.
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|source| CertificateError::Key { path, source })?;
        Ok(ServedCertificate {
            key: Arc::new(key),
            names,
            not_after,
        })
    }
}

/// The DNS names of a certificate, wildcards included. Addresses are never asked for by server name.
fn names(certificate: &X509Certificate<'_>) -> Vec<HostPattern> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice());
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(HostPattern::new(&name.to_ascii_lowercase())),
        GeneralName::IPAddress(_) => Some(HostPattern::Exact("".into())),
        _ => None,
    };
    names.unwrap_or_default().iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests;
