//! The certificate that clients are shown, read again when SIGHUP asks for it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::read_again;
use crate::metrics::{Metrics, TlsMetrics};
use crate::tls::{CertificateTerms, ServerTls};

/// The certificate, and what is told of it.
pub struct Certificate {
    tls: ServerTls,
    metrics: TlsMetrics,
}

impl Certificate {
    /// One that was read at the start.
    pub fn new(tls: ServerTls, metrics: &Metrics) -> Self {
        let certificate = Self {
            metrics: metrics.tls(),
            tls,
        };
        certificate.show(certificate.tls.terms());
        certificate
    }

    /// Reads it again. One that cannot be used, or a file that does not answer in its time, changes nothing.
    pub async fn reload(&self) {
        let tls = self.tls.clone();
        let reloaded = read_again(move || tls.reload()).await;
        self.metrics.reload_failed.set(i64::from(reloaded.is_err()));
        match reloaded {
            Ok(terms) => {
                tracing::info!(
                    not_after = terms.not_after,
                    "the certificate of the service was read again"
                );
                self.show(terms);
            }
            Err(error) => tracing::error!("the certificate of the service stays what it was: {error}"),
        }
    }

    /// Files that clients will not take are not refused: some do, and clocks differ.
    fn show(&self, terms: CertificateTerms) {
        let not_after = i64::try_from(terms.not_after).unwrap_or(i64::MAX);
        self.metrics.not_after.set(not_after);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if terms.not_after < now.as_secs() {
            tracing::warn!("the certificate of the service has expired: clients refuse it");
        }
        if terms.not_before > now.as_secs() {
            tracing::warn!("the certificate of the service is not valid yet: clients refuse it");
        }
        if !terms.names_a_host {
            tracing::warn!(
                "the certificate of the service has no subject alternative name with a host or an address: clients refuse it"
            );
        }
    }
}
