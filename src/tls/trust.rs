//! Which servers a connection is opened to: whom their certificates must be signed by, and what they must say.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use super::files::{certificates, private_key};
use super::{TlsFileError, provider};

/// The system has no authorities to trust.
#[derive(Debug, thiserror::Error)]
#[error("the system has no root certificates")]
pub struct NoSystemRoots;

/// Authorities whose signature is trusted.
#[derive(Clone)]
pub struct Roots(Trusted);

#[derive(Clone)]
enum Trusted {
    System(Arc<rustls_platform_verifier::Verifier>),
    File(Arc<FileRoots>),
}

struct FileRoots {
    store: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Those of the system, and no others.
    ///
    /// # Errors
    ///
    /// [`NoSystemRoots`] if there are none.
    pub fn system() -> Result<Self, NoSystemRoots> {
        let verifier = rustls_platform_verifier::Verifier::new(provider()).map_err(|_| NoSystemRoots)?;
        Ok(Self(Trusted::System(Arc::new(verifier))))
    }

    /// Those of a PEM file, and no others. A server's own certificate that stands in it is trusted too.
    ///
    /// # Errors
    ///
    /// [`TlsFileError`] if it cannot be read or holds none, or one that is none.
    pub fn from_file(path: &Path) -> Result<Self, TlsFileError> {
        let certificates = certificates(path)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| TlsFileError::Unusable {
                path: path.to_owned(),
                what: "certificate",
                reason: error.to_string(),
            })?;
        }
        let store = Arc::new(store);
        Ok(Self(Trusted::File(Arc::new(FileRoots { store, certificates }))))
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Trusted::System(_) => f.write_str("Roots(system)"),
            Trusted::File(roots) => write!(f, "Roots({} certificates)", roots.certificates.len()),
        }
    }
}

/// What a server must prove.
#[derive(Clone, Debug)]
pub enum Verification {
    /// Nothing: whoever answers is taken for the server. What is sent can be read by no one who only listens.
    None,
    /// That one of these authorities has signed its certificate, whatever name it has. Where the system's are trusted,
    /// the name is verified all the same: they have signed for everybody.
    Authority(Roots),
    /// That, and that the certificate is for the name that was asked for.
    AuthorityAndName(Roots),
}

/// What the client proves who it is with.
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClientIdentity {
    /// Reads a certificate, with those between it and an authority, and its key.
    ///
    /// # Errors
    ///
    /// [`TlsFileError`] if a file cannot be read or does not hold it.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsFileError> {
        Ok(Self {
            chain: certificates(certificate)?,
            key: private_key(key)?,
        })
    }
}

/// How connections are opened to such servers, with TLS 1.2 or 1.3. `protocol` is what is spoken (ALPN).
///
/// # Errors
///
/// If key and certificate of the identity do not belong together.
pub fn client_config(
    verification: Verification,
    identity: Option<ClientIdentity>,
    protocol: &str,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous();
    let builder = match verification {
        Verification::Authority(Roots(Trusted::System(verifier)))
        | Verification::AuthorityAndName(Roots(Trusted::System(verifier))) => {
            builder.with_custom_certificate_verifier(verifier)
        }
        Verification::None => builder.with_custom_certificate_verifier(Arc::new(Verifier::new(None, false))),
        Verification::Authority(Roots(Trusted::File(roots))) => {
            builder.with_custom_certificate_verifier(Arc::new(Verifier::new(Some(roots), false)))
        }
        Verification::AuthorityAndName(Roots(Trusted::File(roots))) => {
            builder.with_custom_certificate_verifier(Arc::new(Verifier::new(Some(roots), true)))
        }
    };
    let mut config = match identity {
        Some(ClientIdentity { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(config)
}

/// Verifies what is asked for, and nothing beyond it.
struct Verifier {
    roots: Option<Arc<FileRoots>>,
    verifies_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("verifies_name", &self.verifies_name)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    fn new(roots: Option<Arc<FileRoots>>, verifies_name: bool) -> Self {
        Self {
            roots,
            verifies_name,
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if roots.certificates.contains(end_entity) {
            // One that has signed itself says that it is an authority, which webpki takes for no server.
            verify_dates(end_entity, now)?;
        } else {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)?;
        }
        if self.verifies_name {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    // Where nothing is verified, the signature still is: with it PostgreSQL's password is bound to the certificate's key
    // (SCRAM with channel binding), so that nobody in between can use it. Certificates of X.509 version 1, as
    // PostgreSQL's manual makes them, are read by no one else here.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.roots.is_some() {
            return verify_tls13_signature(message, certificate, signature, &self.algorithms);
        }
        let key = read(certificate)?.tbs_certificate.subject_public_key_info.to_der();
        let key = SubjectPublicKeyInfoDer::from(key.map_err(|_| CertificateError::BadEncoding)?);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Certificate, CertificateError> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)
}

fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let validity = read(certificate)?.tbs_certificate.validity;
    let now = Duration::from_secs(now.as_secs());
    if now < validity.not_before.to_unix_duration() {
        Err(CertificateError::NotValidYet)
    } else if now > validity.not_after.to_unix_duration() {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}
