//! A certificate for a host, given as files and read again as they change.

use crate::store::{StateDirError, read_private};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// Most bytes of each file.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebCertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key is open to others, or cannot be read.
    #[error(transparent)]
    Key(#[from] StateDirError),
    /// A file is not what it should be.
    #[error("{} {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not go together.
    #[error("the certificate in {} and the key in {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The one file.
        certificate: PathBuf,
        /// The other.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// A certificate with its key, and what TLS makes of both.
#[derive(Debug)]
pub(super) struct WebCertificate {
    certificate: PathBuf,
    key: PathBuf,
    tls: ArcSwap<ServerConfig>,
    /// SHA-256 of both files as they were last taken.
    taken: Mutex<[u8; 32]>,
}

impl WebCertificate {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, WebCertificateError> {
        let (tls, digest) = load(&certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            tls: ArcSwap::new(tls),
            taken: Mutex::new(digest),
        })
    }

    /// The configuration for a connection that is accepted now.
    pub(super) fn tls(&self) -> Arc<ServerConfig> {
        self.tls.load_full()
    }

    /// Reads it again, and takes it where it is another; says whether it was.
    ///
    /// # Errors
    /// When it cannot be used; the one before stays in use.
    pub(super) fn look(&self) -> Result<bool, WebCertificateError> {
        let (tls, digest) = load(&self.certificate, &self.key)?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken == digest {
            return Ok(false);
        }
        *taken = digest;
        self.tls.store(tls);
        Ok(true)
    }
}

fn load(
    certificate: &Path,
    key: &Path,
) -> Result<(Arc<ServerConfig>, [u8; 32]), WebCertificateError> {
    let chain_pem = read(certificate)?;
    let key_pem = read_private(key, MAX_FILE_BYTES)?;
    let content = |path: &Path, why: String| WebCertificateError::Content {
        path: path.to_owned(),
        why,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(certificate, format!("is not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(content(certificate, "holds no certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| content(key, format!("holds no private key in PEM: {error}")))?;
    let pair = |source| WebCertificateError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    };
    let provider = sidewind_identity::tls::provider();
    let mut tls = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut both = Zeroizing::new(chain_pem);
    both.extend_from_slice(&key_pem);
    let mut digest = [0; 32];
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &both);
    digest.copy_from_slice(hash.as_ref());
    Ok((Arc::new(tls), digest))
}

fn read(path: &Path) -> Result<Vec<u8>, WebCertificateError> {
    let failed = |source| WebCertificateError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        let why = format!("has more than {MAX_FILE_BYTES} bytes");
        return Err(WebCertificateError::Content {
            path: path.to_owned(),
            why,
        });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            files.write(&pair());
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, (certificate, key): &(String, String)) {
            std::fs::write(self.path("cert"), certificate).unwrap();
            std::fs::write(self.path("key"), key).unwrap();
            self.open_key_to(0o600);
        }

        fn open_key_to(&self, mode: u32) {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(self.path("key"), mode).unwrap();
        }

        fn read(&self) -> Result<WebCertificate, WebCertificateError> {
            WebCertificate::read(self.path("cert"), self.path("key"))
        }
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["bundle.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_new_pair_is_taken_and_half_of_one_is_not() {
        let files = Files::new();
        let certificate = files.read().unwrap();
        assert!(!certificate.look().unwrap());
        let before = certificate.tls();
        let (new, key) = pair();
        std::fs::write(files.path("cert"), &new).unwrap();
        assert!(matches!(
            certificate.look(),
            Err(WebCertificateError::Pair { .. })
        ));
        assert!(Arc::ptr_eq(&before, &certificate.tls()));
        files.write(&(new, key));
        assert!(certificate.look().unwrap());
        assert!(!Arc::ptr_eq(&before, &certificate.tls()));
        assert!(!certificate.look().unwrap());
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_file() {
        let files = Files::new();
        files.open_key_to(0o644);
        let error = files.read().unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
        files.open_key_to(0o600);
        for (file, content, expected) in [
            ("cert", "", "holds no certificate"),
            ("cert", "-----BEGIN CERTIFICATE-----\n", "is not PEM"),
            ("key", "", "holds no private key"),
        ] {
            files.write(&pair());
            std::fs::write(files.path(file), content).unwrap();
            let error = files.read().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(file), "{error}");
        }
        let large = " ".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1);
        std::fs::write(files.path("cert"), large).unwrap();
        let error = files.read().unwrap_err().to_string();
        assert!(error.contains("more than"), "{error}");
        std::fs::remove_file(files.path("cert")).unwrap();
        assert!(files.read().unwrap_err().to_string().contains("cert"));
    }
}
