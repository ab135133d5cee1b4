//! Certificates and keys as PEM files.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::small_file;

/// Where a key that has a passphrase says so: in the older form of OpenSSL as a header, in PKCS #8 as its kind.
const ENCRYPTED: [&[u8]; 2] = [b"Proc-Type: 4,ENCRYPTED", b"-----BEGIN ENCRYPTED PRIVATE KEY-----"];

/// Why a file cannot be used. The message is one line that names the file, and shows nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not PEM.
    #[error("{path:?} is not PEM: {reason}")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is PEM, without what is looked for.
    #[error("{path:?} holds no {what}")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
    /// What it holds cannot be used.
    #[error("{path:?} holds a {what} that cannot be used: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

/// All certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| unlike_pem(path, "certificate", error))?;
    if certificates.is_empty() {
        return Err(unlike_pem(path, "certificate", pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// The first private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    const WHAT: &str = "private key";
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let holds = |mark: &&[u8]| text.windows(mark.len()).any(|window| window == *mark);
        if !ENCRYPTED.iter().any(holds) {
            return unlike_pem(path, WHAT, error);
        }
        TlsFileError::Unusable {
            path: path.to_owned(),
            what: WHAT,
            reason: "it is encrypted with a passphrase".to_owned(),
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    small_file::read(path).map_err(|source| TlsFileError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// The parts of the error that are of the file are left out: they may be parts of a key.
fn unlike_pem(path: &Path, what: &'static str, error: pem::Error) -> TlsFileError {
    let path = path.to_owned();
    let reason = match error {
        pem::Error::NoItemsFound => return TlsFileError::Empty { path, what },
        pem::Error::Io(source) => return TlsFileError::Unreadable { path, source },
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "a section does not begin as it must",
        pem::Error::Base64Decode(_) => "a section is not base64",
        // The enum is open.
        _ => "it cannot be read",
    };
    TlsFileError::NotPem { path, reason }
}
