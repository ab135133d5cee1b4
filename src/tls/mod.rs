//! TLS, with rustls and the cryptography of `ring` wherever it is spoken: to PostgreSQL, to the Approver and to clients.
//!
//! What a connection is checked for is decided by who opens it; here is how, and what a failure is called. Files are read
//! when they are named, so that a wrong one is told at the start.

mod failure;
mod files;
mod server;
mod trust;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use failure::TlsFailure;
pub use files::TlsFileError;
pub use server::{CertificateTerms, ServerFiles, ServerTls, ServerTlsError};
pub use trust::{ClientIdentity, NoSystemRoots, Roots, Verification, client_config};

/// Makes it the process's provider, which reqwest takes where it is given no other.
pub fn install_provider() {
    // Another part of the process may have installed one already, which serves as well.
    let _ = CryptoProvider::install_default(Arc::unwrap_or_clone(provider()));
}

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
