//! The certificate that clients are shown, and how it is replaced while connections are open.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, InconsistentKeys, ServerConfig};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::files::{certificates, private_key};
use super::trust::read;
use super::{TlsFileError, provider};

/// All that is spoken over it.
const PROTOCOL: &[u8] = b"http/1.1";

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct ServerFiles {
    /// The certificate, then those between it and an authority; PEM.
    pub certificate: PathBuf,
    /// Its private key; PEM, without a passphrase.
    pub key: PathBuf,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// Because of the certificate.
    #[error(transparent)]
    Certificate(TlsFileError),
    /// Because of the key, which may be another certificate's.
    #[error(transparent)]
    Key(TlsFileError),
}

/// What clients look at in the certificate that is shown, besides who has signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateTerms {
    /// When it begins, in seconds since 1970-01-01T00:00:00Z.
    pub not_before: u64,
    /// When it ends, in seconds since 1970-01-01T00:00:00Z.
    pub not_after: u64,
    /// Whether it names a host, or its address, as a subject alternative name.
    pub names_a_host: bool,
}

/// What connections are accepted with. Clones show the same certificate, and get the next one together.
#[derive(Clone)]
pub struct ServerTls(Arc<Shared>);

struct Shared {
    files: ServerFiles,
    shown: RwLock<Shown>,
}

#[derive(Clone)]
struct Shown {
    config: Arc<ServerConfig>,
    terms: CertificateTerms,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`ServerTlsError`] if one cannot be read, or key and certificate do not belong together.
    pub fn new(files: ServerFiles) -> Result<Self, ServerTlsError> {
        let shown = RwLock::new(Shown::read(&files)?);
        Ok(Self(Arc::new(Shared { files, shown })))
    }

    /// Reads the files again; connections that are accepted from now on are shown what is in them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); then the certificate stays what it was.
    pub fn reload(&self) -> Result<CertificateTerms, ServerTlsError> {
        let shown = Shown::read(&self.0.files)?;
        let terms = shown.terms;
        // Nobody panics while holding it: only whole values are put in.
        *self.0.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(terms)
    }

    /// Those of the certificate that is shown now.
    pub fn terms(&self) -> CertificateTerms {
        self.shown().terms
    }

    /// What the next connection is accepted with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.shown().config
    }

    fn shown(&self) -> Shown {
        self.0.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTls({:?})", self.0.files)
    }
}

impl Shown {
    /// A configuration of its own with each reading: sessions that began under another certificate are not resumed.
    fn read(files: &ServerFiles) -> Result<Self, ServerTlsError> {
        let chain = certificates(&files.certificate).map_err(ServerTlsError::Certificate)?;
        let key = private_key(&files.key).map_err(ServerTlsError::Key)?;
        // `certificates` gives at least one.
        let terms = CertificateTerms::of(&chain[0]).map_err(|error| unusable_certificate(files, error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| unusable(files, error))?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            terms,
        })
    }
}

impl CertificateTerms {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = read(certificate)?.tbs_certificate;
        // One that cannot be read is of no use to a client either.
        let names = certificate.get::<SubjectAltName>().ok().flatten();
        let names_a_host = |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
        Ok(Self {
            not_before: certificate.validity.not_before.to_unix_duration().as_secs(),
            not_after: certificate.validity.not_after.to_unix_duration().as_secs(),
            names_a_host: names.is_some_and(|(_, SubjectAltName(names))| names.iter().any(names_a_host)),
        })
    }
}

fn unusable_certificate(files: &ServerFiles, reason: String) -> ServerTlsError {
    ServerTlsError::Certificate(TlsFileError::Unusable {
        path: files.certificate.clone(),
        what: "certificate",
        reason,
    })
}

/// What is wrong with a certificate and a key that were both read.
fn unusable(files: &ServerFiles, error: rustls::Error) -> ServerTlsError {
    let reason = match error {
        rustls::Error::InvalidCertificate(error) => return unusable_certificate(files, error.to_string()),
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key is not that of the first certificate in TLS_CERT".to_owned()
        }
        // It says which kinds it has tried, in words of its own.
        rustls::Error::General(_) => {
            "the key is damaged or of a kind that is not supported; supported are RSA of 2048 to \
                                      4096 bits, ECDSA on P-256 and P-384, and Ed25519"
                .to_owned()
        }
        // The enum is open.
        error => error.to_string(),
    };
    ServerTlsError::Key(TlsFileError::Unusable {
        path: files.key.clone(),
        what: "private key",
        reason,
    })
}
