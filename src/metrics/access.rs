//! Who was not let in, and whether the list of those who are is a good one.

use prometheus::{IntCounterVec, IntGauge};

use super::families::Families;
use super::labels::{Label, Unauthorized};

/// What is counted of tokens.
pub struct AccessMetrics {
    unauthorized: IntCounterVec,
    /// How many tokens are in the list.
    pub tokens: IntGauge,
    /// 1 while the list of tokens is an old one because the file could not be read again.
    pub tokens_reload_failed: IntGauge,
}

impl AccessMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let metrics = Self {
            unauthorized: families.counters(
                "balance_unauthenticated_requests_total",
                "Requests refused because of their token, by what was wrong with it.",
                &["reason"],
            ),
            tokens: families.gauge(
                "balance_api_tokens",
                "Tokens in the list; 0 where there is no list, and everyone may ask for everything.",
            ),
            tokens_reload_failed: families.gauge(
                "balance_api_tokens_reload_failed",
                "1 while the list of tokens is an old one because API_TOKENS_FILE could not be read again.",
            ),
        };
        for reason in Unauthorized::ALL {
            metrics.unauthorized.with_label_values(&[reason.label()]);
        }
        metrics
    }

    /// Counts a request that was refused because of its token.
    pub fn unauthorized(&self, reason: Unauthorized) {
        self.unauthorized.with_label_values(&[reason.label()]).inc();
    }
}
