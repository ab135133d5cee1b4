//! The certificate that clients are shown, and how it is replaced while connections are open.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;

use super::files::{certificates, private_key};
use super::trust::not_after;
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

/// When the certificate that is shown ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// In seconds since 1970-01-01T00:00:00Z.
    pub not_after: u64,
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
    expiry: Expiry,
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
    pub fn reload(&self) -> Result<Expiry, ServerTlsError> {
        let shown = Shown::read(&self.0.files)?;
        let expiry = shown.expiry;
        // Nobody panics while holding it: only whole values are put in.
        *self.0.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(expiry)
    }

    /// When the certificate that is shown now ends.
    pub fn expiry(&self) -> Expiry {
        self.shown().expiry
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
        let not_after = not_after(&chain[0]).map_err(|error| {
            ServerTlsError::Certificate(TlsFileError::Unusable {
                path: files.certificate.clone(),
                what: "certificate",
                reason: error.to_string(),
            })
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| {
                ServerTlsError::Key(TlsFileError::Unusable {
                    path: files.key.clone(),
                    what: "key",
                    reason: error.to_string(),
                })
            })?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            expiry: Expiry { not_after },
        })
    }
}
