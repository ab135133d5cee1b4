//! The export of traces, received and decoded by a collector.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::support::approver::Behaviour;
use crate::support::client::{answer, change};
use crate::support::collector::Collector;
use crate::support::world::{NOON, World};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

async fn world(endpoint: &str, settings: &[(&str, &str)]) -> World {
    World::with(|options| {
        options
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .set("OTEL_BSP_SCHEDULE_DELAY", "50")
            .set_all(settings)
    })
    .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text or a number that is told of a part of a trace.
fn told(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{name}: {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn a_change_is_exported_with_its_call_and_its_statements_and_nothing_private() {
    let collector = Collector::start().await;
    let world = world(
        &collector.url(),
        &[("OTEL_SERVICE_NAME", "money"), ("INSTANCE", "replica-7")],
    )
    .await;
    let body = change("private-user", 200_000, NOON)
        .to_string()
        .replace("test", "private-context");
    let change = || world.client.post_body(body.clone());
    let request = change().header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    answer(request).await.expect(200);
    world.approver.always(Behaviour::Status(500));
    answer(change()).await.expect(503);
    answer(world.client.get("/private-user/balance")).await.expect(200);
    answer(world.client.get("/private-user/history")).await.expect(200);
    let is_last = |span: &Span| span.name == "GET /{userId}/history";
    let spans = collector.until(|spans| spans.iter().any(is_last)).await;

    let changes = named(&spans, "POST /changeBalance");
    assert_eq!(changes.len(), 2);
    let (ours, failed) = (changes[0], changes[1]);
    assert_eq!(
        (hex(&ours.trace_id), hex(&ours.parent_span_id)),
        (TRACE.to_owned(), PARENT.to_owned())
    );
    assert_eq!(ours.kind(), SpanKind::Server);
    assert_eq!(told(ours, "http.route").unwrap(), "/changeBalance");
    assert_eq!(told(ours, "http.response.status_code").unwrap(), "200");
    assert!(ours.end_time_unix_nano > ours.start_time_unix_nano);
    assert_ne!(hex(&failed.trace_id), TRACE);
    assert!(failed.parent_span_id.is_empty());
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);

    // The Approver was told of each call by its own name.
    let calls = named(&spans, "GET /approve");
    let heard = world.approver.heard();
    assert_eq!((calls.len(), heard.len()), (4, 4));
    for (call, heard) in calls.iter().zip(heard) {
        let (trace, span) = (hex(&call.trace_id), hex(&call.span_id));
        assert_eq!(heard.header("traceparent").unwrap(), format!("00-{trace}-{span}-01"));
        assert_eq!(call.kind(), SpanKind::Client);
    }
    assert_eq!(calls[0].parent_span_id, ours.span_id);
    assert!(calls[1..].iter().all(|call| call.parent_span_id == failed.span_id));
    assert_eq!(told(calls[1], "error.type").unwrap(), "unexpected_status");

    for (statement, parent) in [("read_users", ours), ("commit", ours)] {
        let found = named(&spans, statement);
        let span = found
            .iter()
            .find(|span| span.parent_span_id == parent.span_id)
            .expect(statement);
        assert_eq!(span.trace_id, parent.trace_id);
        assert_eq!(told(span, "db.system.name").unwrap(), "postgresql");
    }
    for statement in ["read_balances", "read_history"] {
        assert_eq!(named(&spans, statement).len(), 1, "{statement}");
    }
    let received = collector.received();
    for received in &received {
        assert_eq!(received.content_type, "application/x-protobuf");
        let text = String::from_utf8_lossy(&received.bytes);
        for private in ["private", "200000", "hunter2"] {
            assert!(!text.contains(private), "{private}: {text}");
        }
    }
    let resource = received[0].export.resource_spans[0].resource.clone().unwrap();
    let resource = Span {
        attributes: resource.attributes,
        ..Span::default()
    };
    assert_eq!(told(&resource, "service.name").unwrap(), "money");
    assert_eq!(told(&resource, "service.instance.id").unwrap(), "replica-7");
}

#[tokio::test]
async fn what_the_caller_does_not_record_or_the_ratio_leaves_out_is_not_exported() {
    let collector = Collector::start().await;
    let world = world(&collector.url(), &[("OTEL_TRACES_SAMPLER_ARG", "0")]).await;
    let big = || world.client.post_body(change("a", 200_000, NOON).to_string());
    answer(big().header("traceparent", format!("00-{TRACE}-{PARENT}-00")))
        .await
        .expect(200);
    answer(big()).await.expect(200);
    let recorded = big().header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    answer(recorded).await.expect(200);
    let flags: Vec<_> = world
        .approver
        .heard()
        .iter()
        .map(|call| call.header("traceparent").unwrap()[53..].to_owned())
        .collect();
    assert_eq!(flags, ["00", "00", "01"]);
    let approver = &world.approver;
    assert_eq!(approver.calls().len(), 3);
    // The last parts are sent before the end.
    world.replica.stop().await;
    let spans = collector.spans();
    assert_eq!(named(&spans, "POST /changeBalance").len(), 1, "{spans:#?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
}

#[tokio::test]
async fn requests_that_share_a_statement_are_linked_to_it() {
    let collector = Collector::start().await;
    let world = world(&collector.url(), &[]).await;
    for _ in 0..20 {
        let reads = (0..16).map(|number| answer(world.client.get(&format!("/user-{number}/balance"))));
        join_all(reads)
            .await
            .into_iter()
            .for_each(|read| drop(read.expect(200)));
    }
    world.replica.stop().await;
    let spans = collector.spans();
    let reads = named(&spans, "GET /{userId}/balance");
    assert_eq!(reads.len(), 320);
    let statements = named(&spans, "read_balances");
    assert!(statements.len() < 320, "some were shared");
    let mut served = HashSet::new();
    for statement in statements {
        let size = told(statement, "db.operation.batch.size").map_or(1, |size| size.parse().unwrap());
        assert_eq!(statement.links.len(), if size == 1 { 0 } else { size });
        served.extend(
            statement
                .links
                .iter()
                .map(|link| (link.trace_id.clone(), link.span_id.clone())),
        );
        served.insert((statement.trace_id.clone(), statement.parent_span_id.clone()));
    }
    for read in reads {
        assert!(
            served.contains(&(read.trace_id.clone(), read.span_id.clone())),
            "{read:?}"
        );
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_but_its_spans_and_is_told_of_once() {
    let gone = Collector::start().await;
    let (address, url) = (gone.address, gone.url());
    drop(gone);
    let mut world = world(&url, &[("OTEL_BSP_MAX_QUEUE_SIZE", "256")]).await;
    for _ in 0..50 {
        let reads = (0..64).map(|_| answer(world.client.get("/a/balance")));
        join_all(reads)
            .await
            .into_iter()
            .for_each(|read| drop(read.expect(200)));
    }
    world.replica.said("traces cannot be exported").await;
    let began = Instant::now();
    let back = Collector::start_at(address).await;
    back.until(|spans| !spans.is_empty() || began.elapsed() > Duration::from_secs(20))
        .await;
    answer(world.client.get("/a/balance")).await.expect(200);
    world.replica.said("traces are exported again").await;
    drop(back);
    answer(world.client.get("/a/balance")).await.expect(200);
    let began = Instant::now();
    world.replica.signal(Signal::SIGTERM);
    assert!(world.replica.ended().await.success());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let told = world.replica.output();
    let count = |text: &str| told.iter().filter(|line| line.contains(text)).count();
    assert!((1..=2).contains(&count("traces cannot be exported")), "{told:#?}");
    assert!(!told.iter().any(|line| line.starts_with("ERROR")), "{told:#?}");
}
