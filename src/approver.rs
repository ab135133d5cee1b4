//! The client of the Approver, which says whether a big change may be.
//!
//! 200 means approved, 403 means denied. Whatever else comes, or does not come, is an error and never an approval.
//! Timeouts, broken connections and 5xx are tried again, a bounded number of times and not beyond the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::ApproverConfig;
use crate::domain::UserId;
use crate::metrics::{Active, Metrics, VerdictLabel, gauge_value};
use crate::retry::Pauses;
use crate::telemetry::{self, Attribute, RequestContext, Span, SpanId, SpanKind};
use crate::tls::{TlsFailure, Verification, client_config, install_provider};

/// The most calls made for one verdict.
const MAX_CALLS: u32 = 3;
/// How long the rest of an answer may take once its verdict is known, so that its connection can be used again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest body that is read for that.
const DRAIN_BYTES: usize = 64 * 1024;
/// All but the unreserved characters of RFC 3986.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What the Approver said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The change may be.
    Approved,
    /// The change may not be.
    Denied,
}

/// Why there is no verdict. The same request may get one later.
#[derive(Debug, thiserror::Error)]
pub enum ApproverError {
    /// As many verdicts are waited for as may be.
    #[error("too many calls to the Approver in flight")]
    Busy,
    /// No answer in time.
    #[error("the Approver did not answer in time")]
    TimedOut,
    /// The connection failed or what came over it is not HTTP.
    #[error("the call to the Approver failed")]
    Failed(#[source] reqwest::Error),
    /// The Approver is there, and is not the one that is trusted.
    #[error("no secure connection to the Approver: {0}")]
    Insecure(TlsFailure),
    /// An answer that is neither approval nor denial.
    #[error("the Approver answered {0}")]
    Unexpected(StatusCode),
}

impl ApproverError {
    /// As metrics and traces name what kept a call from being answered.
    fn error_type(&self) -> &'static str {
        match self {
            ApproverError::Busy => "busy",
            ApproverError::TimedOut => "timeout",
            ApproverError::Failed(error) if error.is_connect() => "connect",
            ApproverError::Failed(_) => "failed",
            ApproverError::Insecure(_) => "insecure",
            ApproverError::Unexpected(_) => "unexpected_status",
        }
    }
}

/// The Approver at one URL.
pub struct Approver {
    client: Client,
    metrics: Arc<Metrics>,
    url: Url,
    call_timeout: Duration,
    in_flight: Semaphore,
}

impl Approver {
    /// A client that opens connections as they are needed; none is opened now.
    ///
    /// # Errors
    ///
    /// If the system has no certificates to trust, where they are needed.
    pub fn new(config: &ApproverConfig, metrics: Arc<Metrics>) -> Result<Self, reqwest::Error> {
        install_provider();
        let builder = match &config.ca {
            Some(roots) => {
                let verification = Verification::AuthorityAndName(roots.clone());
                let tls = client_config(verification, None, "http/1.1");
                Client::builder().tls_backend_preconfigured(tls.expect("a client without a key is always configured"))
            }
            // Trusts those that the system trusts.
            None if config.url.is_https() => Client::builder(),
            None => Client::builder().tls_certs_only([]),
        };
        let client = builder
            .user_agent(concat!("balance/", env!("CARGO_PKG_VERSION")))
            // A redirect is an unexpected answer; the call goes to the configured host and nowhere else.
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(config.call_timeout)
            .pool_max_idle_per_host(config.calls_in_flight)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()?;
        metrics.approver.limit.set(gauge_value(config.calls_in_flight));
        Ok(Self {
            client,
            metrics,
            url: config.url.approve(),
            call_timeout: config.call_timeout,
            in_flight: Semaphore::new(config.calls_in_flight),
        })
    }

    /// Asks for one verdict, in the trace of the request that this runs for.
    ///
    /// # Errors
    ///
    /// [`ApproverError`] of the last call made, if none gave a verdict before `deadline`.
    pub async fn verdict(
        &self,
        user_id: &UserId,
        balance_change: i64,
        deadline: Instant,
    ) -> Result<Verdict, ApproverError> {
        let verdict = self.ask(user_id, balance_change, deadline).await;
        self.metrics.approver.verdict(match verdict {
            Ok(Verdict::Approved) => VerdictLabel::Approved,
            Ok(Verdict::Denied) => VerdictLabel::Denied,
            Err(_) => VerdictLabel::None,
        });
        verdict
    }

    async fn ask(&self, user_id: &UserId, balance_change: i64, deadline: Instant) -> Result<Verdict, ApproverError> {
        // Whoever waited here would keep a place among the operations under way from those that need no verdict.
        let _permit = self.in_flight.try_acquire().map_err(|_| ApproverError::Busy)?;
        let url = self.url_for(user_id, balance_change);
        let mut pauses = Pauses::between_calls();
        let mut calls = 1;
        loop {
            let error = match self.call(url.clone(), deadline).await {
                Ok(verdict) => return Ok(verdict),
                Err(error) => error,
            };
            let worth_repeating = match &error {
                ApproverError::TimedOut | ApproverError::Failed(_) => true,
                ApproverError::Unexpected(status) => status.is_server_error(),
                // A certificate stays what it is.
                ApproverError::Insecure(failure) => matches!(failure, TlsFailure::Handshake | TlsFailure::Refused),
                ApproverError::Busy => false,
            };
            if !worth_repeating || calls == MAX_CALLS || pauses.pause(deadline).await.is_err() {
                return Err(error);
            }
            tracing::debug!(%error, calls, "asking the Approver again");
            self.metrics.approver.retries.inc();
            calls += 1;
        }
    }

    fn url_for(&self, user_id: &UserId, balance_change: i64) -> Url {
        let mut url = self.url.clone();
        let user_id = utf8_percent_encode(user_id.as_str(), NOT_UNRESERVED);
        url.set_query(Some(&format!("userId={user_id}&balanceChange={balance_change}")));
        url
    }

    /// One call, counted.
    async fn call(&self, url: Url, deadline: Instant) -> Result<Verdict, ApproverError> {
        let began = Moment::now();
        let active = Active::new(&self.metrics.approver.active);
        let request = telemetry::current();
        let span_id = SpanId::new();
        let headers = request.as_deref().map(|request| headers_of(request, span_id));
        let answered = self.send(url, headers.unwrap_or_default(), deadline).await;
        drop(active);
        let (status, verdict) = match answered {
            Ok(status) => (Some(status.as_u16()), verdict_of(status)),
            Err(error) => (None, Err(error)),
        };
        let error_type = verdict.as_ref().err().map_or("", ApproverError::error_type);
        let duration = began.elapsed();
        self.metrics.approver.call(status, error_type, duration);
        if let Some(request) = request {
            telemetry::record(&request.trace, || {
                span_of(&request, span_id, status, error_type, duration)
            });
        }
        verdict
    }

    async fn send(&self, url: Url, headers: HeaderMap, deadline: Instant) -> Result<StatusCode, ApproverError> {
        let deadline = deadline.min(Instant::now() + self.call_timeout);
        let response = match timeout_at(deadline, self.client.get(url).headers(headers).send()).await {
            Err(_) => return Err(ApproverError::TimedOut),
            Ok(Err(error)) if error.is_timeout() => return Err(ApproverError::TimedOut),
            Ok(Err(error)) => {
                let error = error.without_url();
                return Err(
                    TlsFailure::of(&error).map_or_else(|| ApproverError::Failed(error), ApproverError::Insecure)
                );
            }
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        tokio::spawn(timeout(DRAIN_TIMEOUT, drain(response)));
        Ok(status)
    }
}

fn verdict_of(status: StatusCode) -> Result<Verdict, ApproverError> {
    match status {
        StatusCode::OK => Ok(Verdict::Approved),
        StatusCode::FORBIDDEN => Ok(Verdict::Denied),
        other => Err(ApproverError::Unexpected(other)),
    }
}

/// A call as a part of its trace, without the query, in which the user's id is.
fn span_of(
    request: &RequestContext,
    span_id: SpanId,
    status: Option<u16>,
    error_type: &'static str,
    duration: Duration,
) -> Span {
    let trace = &request.trace;
    let span = Span::ended("GET /approve", SpanKind::Client, trace.trace_id(), span_id, duration)
        .with("http.request.method", Attribute::Text("GET".into()))
        .with("error.type", Attribute::Text(error_type.into()));
    let span = match status {
        Some(status) => span.with("http.response.status_code", Attribute::Number(status.into())),
        None => span,
    };
    Span {
        parent: Some((trace.span_id(), false)),
        is_error: !error_type.is_empty(),
        ..span
    }
}

/// What tells the Approver which request it is asked for, and of which trace the call is a part.
fn headers_of(request: &RequestContext, span_id: SpanId) -> HeaderMap {
    let traceparent = request.trace.traceparent(span_id);
    [
        (telemetry::X_REQUEST_ID, Some(&*request.id)),
        (telemetry::TRACEPARENT, Some(&*traceparent)),
        (telemetry::TRACESTATE, request.trace.tracestate()),
    ]
    .into_iter()
    // Whatever was taken over is visible ASCII.
    .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(value?).ok()?)))
    .collect()
}

/// Reads what is left of an answer, which says nothing more, so that the connection can be used again.
async fn drain(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > DRAIN_BYTES {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApproverUrl;

    #[tokio::test]
    async fn ids_are_percent_encoded() {
        let config = ApproverConfig {
            url: ApproverUrl::parse("http://approver/base").unwrap(),
            ca: None,
            call_timeout: Duration::from_secs(1),
            calls_in_flight: 1,
        };
        let approver = Approver::new(&config, Arc::default()).unwrap();
        for (id, encoded) in [
            ("a/b", "a%2Fb"),
            ("..", ".."),
            ("a b+c", "a%20b%2Bc"),
            ("%41&x=1#?", "%2541%26x%3D1%23%3F"),
            ("ё👍", "%D1%91%F0%9F%91%8D"),
            ("~_-.", "~_-."),
        ] {
            let url = approver.url_for(&UserId::new(id).unwrap(), -100_001);
            let expected = format!("http://approver/base/approve?userId={encoded}&balanceChange=-100001");
            assert_eq!(url.as_str(), expected);
        }
    }
}
