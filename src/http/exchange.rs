//! A request and its answer, as operators see them: counted, timed, with an id that the answer and the process's log share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use poem::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use poem::{Request, Response};
use prometheus::IntGauge;

use super::UNMATCHED;
use super::routes::KnownRoute;
use crate::metrics::{Active, Metrics};
use crate::telemetry::{
    self, Attribute, RequestContext, Span, SpanKind, TRACEPARENT, TRACESTATE, TraceContext, X_REQUEST_ID,
};

const REQUEST_ID: HeaderName = HeaderName::from_static(X_REQUEST_ID);
const PARENT: HeaderName = HeaderName::from_static(TRACEPARENT);
const STATE: HeaderName = HeaderName::from_static(TRACESTATE);

/// The status under which a request is counted whose client has gone, as other servers have it.
const GIVEN_UP: &str = "499";

/// A request that is being answered. One that is dropped before its end was given up by the client.
pub(super) struct Exchange<'a> {
    metrics: &'a Metrics,
    began: Instant,
    /// The path's, if there is such a path.
    route: Option<&'static KnownRoute>,
    method: &'static str,
    request: Arc<RequestContext>,
    has_ended: bool,
    _active: Active<&'a IntGauge>,
}

impl<'a> Exchange<'a> {
    pub(super) fn begin(request: &Request, route: Option<&'static KnownRoute>, metrics: &'a Metrics) -> Self {
        Self {
            metrics,
            began: Instant::now(),
            route,
            method: known_method(request.method()),
            request: Arc::new(context_of(request.headers())),
            has_ended: false,
            _active: Active::new(&metrics.http.active),
        }
    }

    /// What tells this request from others.
    pub(super) fn request(&self) -> Arc<RequestContext> {
        Arc::clone(&self.request)
    }

    /// Gives the answer its request's id, and notes it.
    pub(super) fn end(mut self, response: &mut Response) {
        self.has_ended = true;
        let headers = response.headers_mut();
        // Whatever is taken over is visible ASCII.
        if let Ok(id) = HeaderValue::from_str(&self.request.id) {
            headers.insert(REQUEST_ID, id);
        }
        let status = response.status();
        let (route, duration) = self.count(status.as_str());
        tracing::debug!(
            route,
            method = self.method,
            status = status.as_u16(),
            duration_seconds = duration.as_secs_f64(),
            "answered"
        );
        telemetry::record(&self.request.trace, || self.span(route, status, duration));
    }

    /// Counts the request under its route, and tells how long it took.
    fn count(&self, status: &str) -> (&'static str, Duration) {
        let route = self.route.map_or(UNMATCHED, |route| route.pattern);
        let duration = self.began.elapsed();
        self.metrics.http.request(route, self.method, status, duration);
        (route, duration)
    }

    /// The request as a part of its trace. Its path is the client's, and has a user's id in it; its route is not.
    fn span(&self, route: &'static str, status: StatusCode, duration: Duration) -> Span {
        let trace = &self.request.trace;
        let name = format!("{} {route}", self.method);
        let span = Span::ended(name, SpanKind::Server, trace.trace_id(), trace.span_id(), duration)
            .with("http.request.method", Attribute::Text(self.method.into()))
            .with("http.route", Attribute::Text(route.into()))
            .with("http.response.status_code", Attribute::Number(status.as_u16().into()));
        Span {
            parent: trace.parent().map(|parent| (parent, true)),
            is_error: status.is_server_error(),
            ..span
        }
    }
}

/// A client that did not wait for its answer: what it asked for goes on, but not for it. Such requests are likely the slowest,
/// and belong with the others.
impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let (route, duration) = self.count(GIVEN_UP);
        telemetry::caused_by([Some(&self.request)], || {
            let duration_seconds = duration.as_secs_f64();
            tracing::debug!(route, method = self.method, duration_seconds, "given up by the client");
        });
    }
}

fn context_of(headers: &HeaderMap) -> RequestContext {
    let mut parents = headers.get_all(PARENT).iter();
    // Of two traces neither is the request's.
    let parent = parents.next().filter(|_| parents.next().is_none());
    let states = headers.get_all(STATE).iter().map(HeaderValue::as_bytes);
    let trace = parent.and_then(|parent| TraceContext::continued(parent.as_bytes(), states));
    let id = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
    RequestContext::new(id, trace.unwrap_or_else(telemetry::begin_trace))
}

/// Methods are the client's to invent; labels are not.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}
