//! Authorities and certificates of a test's own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::janitor::Janitor;

/// An authority that signs what it is asked to.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key; PEM.
#[derive(Clone)]
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

fn parameters(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).unwrap();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut parameters = parameters(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(parameters, key);
        Self { issuer, pem }
    }

    /// A server's certificate for these names, valid from yesterday for so long.
    pub fn sign_for(&self, names: &[&str], valid: Duration) -> Certificate {
        self.sign_from(names, time::OffsetDateTime::now_utc() - time::Duration::DAY, valid)
    }

    /// A server's certificate for these names, valid for a day that begins after so long.
    pub fn sign_later(&self, names: &[&str], after: Duration) -> Certificate {
        let day = Duration::from_secs(86_400);
        self.sign_from(names, time::OffsetDateTime::now_utc() + after, day)
    }

    fn sign_from(&self, names: &[&str], begin: time::OffsetDateTime, valid: Duration) -> Certificate {
        let mut parameters = parameters("a server", names);
        parameters.not_before = begin;
        parameters.not_after = parameters.not_before + valid;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.signed(&parameters)
    }

    /// A server's certificate for these names.
    pub fn sign(&self, names: &[&str]) -> Certificate {
        self.sign_for(names, Duration::from_secs(30 * 86_400))
    }

    /// A certificate that a client shows.
    pub fn sign_client(&self, name: &str) -> Certificate {
        let mut parameters = parameters(name, &[]);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(&parameters)
    }

    fn signed(&self, parameters: &CertificateParams) -> Certificate {
        let key = KeyPair::generate().unwrap();
        Certificate {
            chain: parameters.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// How a client that trusts it alone connects.
    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        ClientConfig::builder_with_provider(balance::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// One that has signed itself and calls itself an authority, as `openssl req -x509` makes it.
pub fn self_signed(names: &[&str]) -> Certificate {
    let mut parameters = parameters("alone", names);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Certificate {
        chain: parameters.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

impl Certificate {
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }

    /// How a server with it accepts connections.
    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(balance::tls::provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let config = builder.with_no_client_auth().with_single_cert(vec![self.der()], key);
        Arc::new(config.unwrap())
    }

    /// Writes `name.pem` and `name.key` into a directory.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (chain, key) = (
            directory.join(format!("{name}.pem")),
            directory.join(format!("{name}.key")),
        );
        std::fs::write(&chain, &self.chain).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (chain, key)
    }
}

/// With `TEST_TLS` every replica of the tests serves https, and its PostgreSQL must prove who it is.
pub struct Everywhere {
    pub authority: Authority,
    /// For this machine.
    pub certificate: Certificate,
    directory: PathBuf,
}

impl Everywhere {
    /// What they all use, if they are asked to.
    pub fn asked() -> Option<&'static Self> {
        static EVERYWHERE: OnceLock<Option<Everywhere>> = OnceLock::new();
        let made = EVERYWHERE.get_or_init(|| std::env::var_os("TEST_TLS").map(|_| Self::new()));
        made.as_ref()
    }

    fn new() -> Self {
        let directory = Janitor::get().directory().join("tls");
        std::fs::create_dir(&directory).unwrap();
        let authority = Authority::new("the authority of the tests");
        let certificate = authority.sign(&["localhost", "127.0.0.1"]);
        std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
        certificate.write(&directory, "service");
        Self {
            authority,
            certificate,
            directory,
        }
    }

    /// The path of `ca.pem`, `service.pem` or `service.key`.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }
}
