//! Why there is no TLS connection, as a closed list: each in words that show neither hosts nor files.

use std::error::Error;
use std::io;

use rustls::{CertificateError, OtherError};

/// Why the other side was not trusted, or did not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// The server speaks plain text only.
    #[error("the server offers no TLS")]
    NotOffered,
    /// No trusted authority has signed the server's certificate as a server's; it may have signed itself.
    #[error("the server's certificate is not signed by a trusted authority")]
    Untrusted,
    /// The certificate does not name the host that was asked for.
    #[error("the server's certificate is for another name")]
    WrongName,
    /// Its time is over.
    #[error("the server's certificate has expired")]
    Expired,
    /// Its time has not begun.
    #[error("the server's certificate is not valid yet")]
    NotYetValid,
    /// It is none that a server may show, or cannot be read, such as one of X.509 version 1.
    #[error("the server's certificate cannot be verified")]
    Unusable,
    /// The server sent an alert, as it does where it wants another certificate of the client.
    #[error("the server refused the TLS handshake")]
    Refused,
    /// Anything else: no common version or cipher, bytes that are no TLS, a connection that ended.
    #[error("the TLS handshake failed")]
    Handshake,
}

impl TlsFailure {
    /// What an error, or one of its causes, says of TLS; nothing if it is about something else.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::from(error));
            }
            // An I/O error gives the cause of what it holds for its own.
            let held = error.downcast_ref().and_then(io::Error::get_ref);
            next = held
                .map(|held| held as &(dyn Error + 'static))
                .or_else(|| error.source());
        }
        None
    }
}

impl From<&rustls::Error> for TlsFailure {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Untrusted,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
                CertificateError::Other(error) if is_authoritys_own(error) => Self::Untrusted,
                // The enum is open; whatever else is wrong with it, it was not verified.
                _ => Self::Unusable,
            },
            rustls::Error::AlertReceived(_) => Self::Refused,
            // So is this one.
            _ => Self::Handshake,
        }
    }
}

/// Whether an authority's certificate was shown as a server's, which is what `openssl req -x509` makes of one that has signed
/// itself. rustls has no name for it.
fn is_authoritys_own(OtherError(error): &OtherError) -> bool {
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
