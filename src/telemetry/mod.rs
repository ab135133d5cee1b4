//! What operators see of a process beside its metrics: its log, and by which request an event of it was caused.
//!
//! - `request`: the id of a request and its trace, and what is caused by which request.
//! - `trace_context`: W3C Trace Context, taken over and passed on.
//! - `spans`: parts of traces that have ended, and `otlp`, which exports them.
//! - `process_log`: the log on standard error, as text or as lines of JSON.
//!
//! No span of `tracing` is made for a request: most requests cause no event, and one that does takes the request's id from
//! where it runs. That costs a read a few nanoseconds, where a span would cost it microseconds.
//!
//! Neither the log nor a trace ever holds a user's id, a context, an amount or a secret; the operations log is for that.

#[cfg(feature = "otlp")]
mod otlp;
mod process_log;
mod request;
mod spans;
mod trace_context;

pub use process_log::install;
pub use request::{RequestContext, carried, caused_by, current, scope, shared_by};
pub use spans::{
    Attribute, ExportError, Span, SpanKind, begin_export, begin_trace, end_export, record, record_statement,
};
pub use trace_context::{SpanId, TraceContext, TraceId};

/// The header with the id of a request.
pub const X_REQUEST_ID: &str = "x-request-id";
/// The header with the place of a request in a trace.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what others want to know of that trace.
pub const TRACESTATE: &str = "tracestate";
