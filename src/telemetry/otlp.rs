//! Export by OTLP over HTTP, as protobuf. A thread of OpenTelemetry's takes what has ended from a queue of 2,048 and sends
//! 512 at a time, or what there is every 5 s; where the queue is full, or the collector away, parts of traces are lost and
//! nothing waits for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::{
    Link, SpanContext, SpanId as OtelSpanId, SpanKind as OtelSpanKind, Status, TraceFlags, TraceId as OtelTraceId,
    TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor};
use reqwest::redirect::Policy;
use tokio::runtime::Handle;

use super::spans::{Attribute, ExportError, Span, SpanKind};
use super::trace_context::{SpanId, TraceId};
use crate::causes::causes;
use crate::config::TracesConfig;
use crate::tls::install_provider;

/// How long one request to the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last ones may take.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer of a collector that is read.
const MOST_ANSWER: usize = 64 * 1024;

/// The way to the collector.
pub struct Exporter {
    processor: std::sync::Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
}

impl Exporter {
    /// Starts the thread; must be called within the runtime, on which requests are made.
    pub fn new(config: &TracesConfig) -> Result<Self, ExportError> {
        install_provider();
        let http = reqwest::Client::builder()
            .user_agent(concat!("balance/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| ExportError(causes(&error)))?;
        let runtime = Handle::current();
        let exporter = OtlpExporter::builder()
            .with_http()
            .with_http_client(Client { http, runtime })
            .with_endpoint(config.endpoint.traces())
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| ExportError(error.to_string()))?;
        let lost = AtomicUsize::new(0);
        let mut processor = BatchSpanProcessor::builder(Telling { exporter, lost }).build();
        let resource = Resource::builder_empty().with_service_name(config.service_name.clone());
        let resource = resource.with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", config.instance.clone()),
        ]);
        processor.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("balance").with_version(env!("CARGO_PKG_VERSION"));
        Ok(Self {
            processor: processor.into(),
            scope: scope.build(),
        })
    }

    /// Hands over a part of a trace; never waits.
    pub fn end(&self, span: Span) {
        self.processor.on_end(self.data(span));
    }

    /// Sends what is left.
    pub async fn finish(&self) {
        let processor = std::sync::Arc::clone(&self.processor);
        let finishing = tokio::task::spawn_blocking(move || processor.shutdown_with_timeout(LAST_TIMEOUT));
        if !matches!(finishing.await, Ok(Ok(()))) {
            tracing::warn!("the last parts of traces were not exported in time");
        }
    }

    fn data(&self, span: Span) -> SpanData {
        let mut links = SpanLinks::default();
        let linked = span.links.into_iter();
        links.links = linked
            .map(|(trace, span)| Link::with_context(context(trace, span)))
            .collect();
        let (parent, parent_is_remote) = span.parent.map_or((OtelSpanId::INVALID, false), |(parent, is_remote)| {
            (OtelSpanId::from(parent.0), is_remote)
        });
        let attributes = span.attributes.into_iter().map(|(name, value)| match value {
            Attribute::Text(text) => KeyValue::new(name, text),
            Attribute::Number(number) => KeyValue::new(name, number),
        });
        SpanData {
            span_context: context(span.trace_id, span.span_id),
            parent_span_id: parent,
            parent_span_is_remote: parent_is_remote,
            span_kind: match span.kind {
                SpanKind::Server => OtelSpanKind::Server,
                SpanKind::Client => OtelSpanKind::Client,
            },
            name: span.name,
            start_time: span.began,
            end_time: span.ended,
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: if span.is_error {
                Status::error("")
            } else {
                Status::Unset
            },
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn context(trace_id: TraceId, span_id: SpanId) -> SpanContext {
    let (trace_id, span_id) = (OtelTraceId::from(trace_id.0), OtelSpanId::from(span_id.0));
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE)
}

/// Tells when exporting begins to fail and when it works again, not each time that it does.
#[derive(Debug)]
struct Telling {
    exporter: OtlpExporter,
    /// Since it last worked.
    lost: AtomicUsize,
}

impl SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        match self.exporter.export(batch).await {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!(lost, "traces are exported again");
                }
            }
            Err(error) => {
                let before = self.lost.fetch_add(count, Ordering::Relaxed);
                if before == 0 {
                    tracing::warn!(%error, "traces cannot be exported; what cannot be is lost");
                }
            }
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Requests of a thread that has no runtime of its own.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let mut answer = http.execute(request.try_into()?).await.map_err(|error| {
                let error = error.without_url();
                tracing::debug!("the collector cannot be asked: {}", causes(&error));
                error
            })?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await? {
                if body.len() + chunk.len() > MOST_ANSWER {
                    return Err("the collector's answer is too long".into());
                }
                body.extend_from_slice(&chunk);
            }
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = answer.status();
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            Ok(response)
        });
        sending.await?
    }
}
