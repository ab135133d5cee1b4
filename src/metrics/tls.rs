//! The certificate that clients are shown.

use prometheus::IntGauge;

use super::families::Families;

/// The gauges of the service's certificate.
pub struct TlsMetrics {
    /// When it ends, in seconds since 1970.
    pub not_after: IntGauge,
    /// 1 if the last attempt to read another one failed.
    pub reload_failed: IntGauge,
}

impl TlsMetrics {
    pub(super) fn new(families: &Families) -> Self {
        Self {
            not_after: families.gauge(
                "balance_tls_certificate_not_after_seconds",
                "When the certificate that clients are shown ends, in seconds since 1970.",
            ),
            reload_failed: families.gauge(
                "balance_tls_reload_failed",
                "1 if TLS_CERT and TLS_KEY could not be read again when SIGHUP last asked for it.",
            ),
        }
    }
}
