//! Requests and connections of clients.

use std::time::Duration;

use prometheus::{Gauge, HistogramVec, IntCounter, IntGauge};

use super::families::{DURATIONS, Families};

/// What is counted of requests and the connections they come on.
pub struct HttpMetrics {
    requests: HistogramVec,
    /// Requests under way.
    pub active: IntGauge,
    /// Connections that are open.
    pub connections: IntGauge,
    /// The most of them.
    pub connections_limit: IntGauge,
    /// Connections that were answered 503 because there were too many.
    pub turned_away: IntCounter,
    /// 1 if the last `GET /readyz` was answered 200, 0 if not; NaN before the first.
    pub ready: Gauge,
}

impl HttpMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let ready = families.fraction(
            "balance_ready",
            "1 if the last GET /readyz was answered 200, 0 if not; NaN before the first.",
        );
        ready.set(f64::NAN);
        Self {
            requests: families.histograms(
                "http_server_request_duration_seconds",
                "Duration of HTTP requests, by route, method and status.",
                &DURATIONS,
                &["http_route", "http_request_method", "http_response_status_code"],
            ),
            active: families.gauge("http_server_active_requests", "HTTP requests under way."),
            connections: families.gauge("balance_http_connections", "Connections of clients that are open."),
            connections_limit: families.gauge(
                "balance_http_connections_limit",
                "The most connections of clients; more are turned away.",
            ),
            turned_away: families.counter(
                "balance_http_connections_turned_away_total",
                "Connections of clients that were answered 503 because too many were open.",
            ),
            ready,
        }
    }

    /// Counts an answered request. Route, method and status are of closed lists.
    pub fn request(&self, route: &str, method: &str, status: &str, duration: Duration) {
        self.requests
            .with_label_values(&[route, method, status])
            .observe(duration.as_secs_f64());
    }
}
