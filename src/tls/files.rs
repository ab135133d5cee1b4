//! Certificates and keys as PEM files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest file that is read; the authorities of a whole system take a quarter of it.
const MOST_BYTES: u64 = 1024 * 1024;

/// Why a file cannot be used. The message is one line that names the file, and shows nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not PEM.
    #[error("{} is not PEM: {reason}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is PEM, without what is looked for.
    #[error("{} holds no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
    /// What it holds cannot be used.
    #[error("{} holds a {what} that cannot be used: {reason}", path.display())]
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
    const WHAT: &str = "private key without a passphrase";
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| unlike_pem(path, WHAT, error))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|source| TlsFileError::Unreadable {
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
