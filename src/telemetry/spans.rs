//! Finished parts of traces, for whoever collects them. Nothing is made where nobody does, or where the trace is not
//! recorded.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::request::{Cause, cause};
use super::trace_context::{SpanId, TraceContext, TraceId};
use crate::config::TracesConfig;

#[cfg(feature = "otlp")]
use super::otlp::Exporter;
#[cfg(not(feature = "otlp"))]
use without_otlp::Exporter;

pub use export_error::ExportError;

/// A process has one; `begin_export` sets it.
static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    exporter: Exporter,
    /// Which part of the traces that begin here is recorded, 0 to 1.
    ratio: f64,
}

/// Which side of a call a part of a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// It answers.
    Server,
    /// It asks.
    Client,
}

/// What is told of a part of a trace. Names and texts are of closed lists; never a user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

/// A part of a trace that has ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// What it was.
    pub name: Cow<'static, str>,
    /// Which side of a call.
    pub kind: SpanKind,
    /// Of which trace.
    pub trace_id: TraceId,
    /// Its own name.
    pub span_id: SpanId,
    /// The part it belongs to, and whether that is another service's.
    pub parent: Option<(SpanId, bool)>,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Whether it failed.
    pub is_error: bool,
    /// What else is told of it, by OpenTelemetry's names.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Parts of other traces that it was done for.
    pub links: Vec<(TraceId, SpanId)>,
}

impl Span {
    /// One that ends now and began so long ago.
    pub fn ended(
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        trace_id: TraceId,
        span_id: SpanId,
        took: Duration,
    ) -> Self {
        let ended = SystemTime::now();
        Self {
            name: name.into(),
            kind,
            trace_id,
            span_id,
            parent: None,
            began: ended.checked_sub(took).unwrap_or(ended),
            ended,
            is_error: false,
            attributes: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Tells something of it, unless it is an empty text.
    pub fn with(mut self, name: &'static str, value: Attribute) -> Self {
        if value != Attribute::Text(Cow::Borrowed("")) {
            self.attributes.push((name, value));
        }
        self
    }
}

/// Begins to export what is recorded. To be called once, within the runtime.
///
/// # Errors
///
/// [`ExportError`] if the client cannot be made.
pub fn begin_export(config: &TracesConfig) -> Result<(), ExportError> {
    let exporter = Exporter::new(config)?;
    let ratio = config.ratio;
    // A second call would be a defect, and the first exporter serves as well.
    let _ = EXPORT.set(Export { exporter, ratio });
    Ok(())
}

/// Exports what is left, for at most two seconds.
pub async fn end_export() {
    if let Some(export) = EXPORT.get() {
        export.exporter.finish().await;
    }
}

/// Whether anything is exported.
pub fn exports() -> bool {
    EXPORT.get().is_some()
}

/// A trace that begins here.
pub fn begin_trace() -> TraceContext {
    let context = TraceContext::begun();
    let Some(export) = EXPORT.get() else {
        return context;
    };
    let is_sampled = is_drawn(context.trace_id(), export.ratio);
    context.sampled(is_sampled)
}

/// Decides by the trace's id alone, as every service that has the same ratio does.
fn is_drawn(trace_id: TraceId, ratio: f64) -> bool {
    const BITS: i32 = 32;
    let low = (trace_id.0 & u128::from(u32::MAX)) as u32;
    f64::from(low) < ratio * 2_f64.powi(BITS)
}

/// Exports a part of a trace, if it is recorded and somebody collects it.
pub fn record(trace: &TraceContext, span: impl FnOnce() -> Span) {
    if let Some(export) = EXPORT.get().filter(|_| trace.is_sampled()) {
        export.exporter.end(span());
    }
}

/// Exports a statement that has ended: a part of the request that it was sent for, or a trace of its own with links to the
/// requests that shared it.
pub fn record_statement(name: &'static str, error_type: &'static str, began: Instant) {
    let Some(export) = EXPORT.get() else {
        return;
    };
    let span = |trace_id, span_id| {
        let span = Span::ended(name, SpanKind::Client, trace_id, span_id, began.elapsed());
        let text = |text| Attribute::Text(Cow::Borrowed(text));
        let span = span.with("db.system.name", text("postgresql"));
        let span = span
            .with("db.operation.name", text(name))
            .with("error.type", text(error_type));
        Span {
            is_error: !error_type.is_empty(),
            ..span
        }
    };
    match cause() {
        Some(Cause::Request(request)) if request.trace.is_sampled() => export.exporter.end(Span {
            parent: Some((request.trace.span_id(), false)),
            ..span(request.trace.trace_id(), SpanId::new())
        }),
        Some(Cause::Batch(requests, count)) => {
            let links = links_to(&requests);
            if !links.is_empty() {
                let own = TraceContext::begun();
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                let span = span(own.trace_id(), own.span_id());
                let span = span.with("db.operation.batch.size", Attribute::Number(count));
                export.exporter.end(Span { links, ..span });
            }
        }
        Some(Cause::Request(_)) | None => {}
    }
}

fn links_to(requests: &[Arc<super::RequestContext>]) -> Vec<(TraceId, SpanId)> {
    let traces = requests.iter().map(|request| &request.trace);
    let sampled = traces.filter(|trace| trace.is_sampled());
    sampled.map(|trace| (trace.trace_id(), trace.span_id())).collect()
}

mod export_error {
    /// Traces cannot be exported.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    pub struct ExportError(pub String);
}

#[cfg(not(feature = "otlp"))]
mod without_otlp {
    use super::{ExportError, Span};
    use crate::config::TracesConfig;

    /// There is none in a program that is built without it.
    pub enum Exporter {}

    impl Exporter {
        pub fn new(_: &TracesConfig) -> Result<Self, ExportError> {
            Err(ExportError("this program is built without the feature otlp".to_owned()))
        }

        pub fn end(&self, _: Span) {
            match *self {}
        }

        pub async fn finish(&self) {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_drawn_by_the_ratio_and_by_their_ids_alone() {
        let drawn = |ratio| {
            (0..10_000)
                .filter(|_| is_drawn(TraceContext::begun().trace_id(), ratio))
                .count()
        };
        assert_eq!((drawn(0.0), drawn(1.0)), (0, 10_000));
        let some = drawn(0.1);
        assert!((800..1_200).contains(&some), "{some}");
        let id = TraceId(7 << 64 | 0x4000_0000);
        assert!(is_drawn(id, 0.26) && !is_drawn(id, 0.25));
    }
}
