//! The OpenAPI document, Swagger UI, the probes and the metrics.

use std::collections::BTreeSet;
use std::process::Command;

use chrono::{DateTime, Utc};
use progenitor_client::Error;
use serde_json::{Value, json};

use crate::support::client::{answer, change};
use crate::support::generated::types;
use crate::support::world::{NOON, World};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
const PROBLEM: &str = "application/problem+json";
const RENEW: &str = "cargo run -- openapi > openapi/openapi.json";

fn committed() -> String {
    std::fs::read_to_string(COMMITTED).unwrap_or_else(|error| panic!("{error}; renew it: {RENEW}"))
}

fn document() -> Value {
    serde_json::from_str(&committed()).unwrap()
}

/// Every operation with its path and method.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = |(path, methods)| {
        let methods: &Value = methods;
        let methods = methods.as_object().unwrap().iter();
        methods.map(move |(method, operation)| (path, method.as_str(), operation))
    };
    paths
        .map(|(path, item)| (path.as_str(), item))
        .flat_map(methods)
        .collect()
}

/// What a schema stands for, if it is a reference.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

#[tokio::test]
async fn the_document_is_the_one_that_is_committed_printed_and_served() {
    let printed = Command::new(env!("CARGO_BIN_EXE_balance"))
        .arg("openapi")
        .output()
        .unwrap();
    assert!(printed.status.success() && printed.stderr.is_empty());
    assert!(
        printed.stdout == committed().into_bytes(),
        "openapi/openapi.json is old; renew it: {RENEW}"
    );
    let world = World::start().await;
    let served = world.client.get("/openapi.json").send().await.unwrap();
    assert_eq!(served.headers()["content-type"], "application/json");
    assert!(
        served.bytes().await.unwrap() == printed.stdout,
        "/openapi.json is not what `balance openapi` prints"
    );
}

#[test]
fn every_operation_is_named_described_and_shown_by_examples() {
    let document = document();
    let has_text = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let at = format!("{method} {path}");
        for member in ["operationId", "summary", "description"] {
            assert!(has_text(&operation[member]), "{at} has no {member}");
        }
        assert!(names.insert(operation["operationId"].as_str().unwrap()), "{at}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            assert!(has_text(&parameter["description"]), "{at} {name}");
            let schema = &parameter["schema"];
            // What comes of an earlier answer cannot be made up.
            let shown = ["example", "default"].iter().any(|member| !schema[member].is_null());
            let is_of_an_answer = ["cursor", "If-Match", "If-None-Match", "knownAt"].contains(&name);
            assert!(shown || is_of_an_answer, "{at} {name} has no example");
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(has_text(&response["description"]), "{at} {status}");
            // A 304 has no body, and says so.
            assert_eq!(response["content"].is_null(), status == "304", "{at} {status}");
            for (media_type, content) in response["content"].as_object().into_iter().flatten() {
                let is_problem = status.starts_with(['4', '5']);
                // Under its plain name for the generators that know no other.
                let alias = media_type == "application/json" && response["content"].get(PROBLEM).is_some();
                assert_eq!(media_type == PROBLEM || alias, is_problem, "{at} {status}");
                let schema = resolved(&document, &content["schema"]);
                let shown = content
                    .get("examples")
                    .or(content.get("example"))
                    .or(schema.get("example"));
                assert!(shown.is_some(), "{at} {status} has no example");
            }
        }
    }
    let expected = [
        "changeBalance",
        "getAvailable",
        "getBalance",
        "getHistory",
        "getLiveness",
        "getMetrics",
        "getReadiness",
    ];
    assert!(names.into_iter().eq(expected));
}

#[test]
fn the_statuses_and_codes_of_the_document_are_those_of_the_contract() {
    let document = document();
    let codes: BTreeSet<_> = document["components"]["schemas"]["ProblemCode"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    for (path, method, statuses) in [
        // 408 is for a body that does not arrive: a transport's matter, like 404 and 405.
        ("/changeBalance", "post", "200 400 401 403 408 412 413 415 422 503"),
        ("/{userId}/balance", "get", "200 304 400 401 403 503"),
        ("/{userId}/available", "get", "200 304 400 401 403 503"),
        ("/{userId}/history", "get", "200 400 401 403 503"),
    ] {
        let responses = document["paths"][path][method]["responses"].as_object().unwrap();
        let found: Vec<_> = responses.keys().map(String::as_str).collect();
        assert_eq!(found.join(" "), statuses, "{path}");
        for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "4") {
            let description = response["description"].as_str().unwrap();
            let examples = &response["content"]["application/problem+json"]["examples"];
            for (code, example) in examples.as_object().unwrap() {
                assert!(codes.contains(code.as_str()), "{code}");
                assert!(
                    description.contains(&format!("`{code}`")),
                    "{path} {status} does not name {code}"
                );
                assert_eq!(example["value"]["code"], *code);
                assert_eq!(example["value"]["status"].to_string(), *status);
            }
        }
    }
}

#[test]
fn the_document_says_what_needs_a_token_where_there_are_tokens() {
    let document = document();
    let scheme = &document["components"]["securitySchemes"]["bearerToken"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    for (path, _, operation) in operations(&document) {
        // Without a list of tokens none is needed.
        let expected = match path {
            "/livez" | "/readyz" | "/metrics" => json!([]),
            _ => json!([{ "bearerToken": [] }, {}]),
        };
        assert_eq!(operation["security"], expected, "{path}");
        let challenged = ["401", "403"].map(|status| &operation["responses"][status]["headers"]["WWW-Authenticate"]);
        let is_guarded = expected != json!([]);
        assert!(
            challenged.iter().all(|header| header.is_object() == is_guarded),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_examples_of_the_document_work_as_they_are() {
    let (world, document) = (World::start().await, document());
    let example = |schema: &str| document["components"]["schemas"][schema]["example"].clone();
    let mut changed = world.client.change(&example("ChangeRequest")).await.expect(200).body;
    let name = changed["operationId"].clone();
    changed["operationId"] = example("Change")["operationId"].clone();
    assert_eq!(changed, example("Change"));

    let shown = |path: &str, name: &str| {
        let parameters = document["paths"][path]["get"]["parameters"].as_array().unwrap();
        let parameter = parameters.iter().find(|parameter| parameter["name"] == name).unwrap();
        let value = ["example", "default"].map(|member| parameter["schema"][member].clone());
        let value = value.into_iter().find(|value| !value.is_null()).unwrap();
        value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
    };
    let path = "/{userId}/balance";
    let read = world
        .client
        .balance(&shown(path, "userId"), Some(&shown(path, "timestamp")))
        .await;
    assert_eq!(read.expect(200).body, example("Balance"));

    let path = "/{userId}/history";
    let query = ["from", "to", "order", "limit"].map(|name| format!("{name}={}", shown(path, name)));
    let path = format!("/{}/history?{}", shown(path, "userId"), query.join("&"));
    let mut history = answer(world.client.get(&path)).await.expect(200).body;
    assert_eq!(history["operations"][0]["operationId"], name);
    for varying in ["operationId", "recordedAt"] {
        history["operations"][0][varying] = example("History")["operations"][0][varying].clone();
    }
    assert_eq!(history, example("History"));
    let key = &document["paths"]["/changeBalance"]["post"]["parameters"][0]["schema"]["example"];
    let keyed = world
        .client
        .change_with_key(&example("ChangeRequest"), key.as_str().unwrap())
        .await;
    keyed.expect(200);
}

#[tokio::test]
async fn a_client_made_of_the_document_has_whole_numbers_and_errors_as_they_are() {
    const BEYOND_53_BITS: i64 = 9_007_199_254_740_993;
    let world = World::start().await;
    let client = world.client.generated();
    let change = |amount: i64| {
        let body = types::ChangeRequest::builder().user_id("a/b 😀").context("test");
        let body = body
            .balance_change(amount)
            .timestamp(NOON.parse::<DateTime<Utc>>().unwrap());
        client.change_balance().body(body)
    };
    let shortfall = |amount: i64| async move {
        match change(amount).send().await {
            Err(Error::ErrorResponse(problem)) => {
                assert_eq!(problem.code, types::ProblemCode::InsufficientFunds);
                assert_eq!(problem.at.map(|at| at.timestamp()), Some(1_769_860_800));
                problem.shortfall.unwrap().get()
            }
            other => panic!("{other:?}"),
        }
    };
    // One more than a signed 64-bit number holds.
    assert_eq!(shortfall(i64::MIN).await, 1 << 63);
    for replayed in [None, Some("true")] {
        let changed = change(BEYOND_53_BITS).idempotency_key("once").send().await.unwrap();
        assert_eq!(changed.balance, BEYOND_53_BITS);
        let header = changed.headers().get("idempotency-replayed");
        assert_eq!(header.map(|value| value.to_str().unwrap()), replayed);
    }
    assert_eq!(shortfall(-2 * BEYOND_53_BITS).await, BEYOND_53_BITS.unsigned_abs());
    let read = client.get_balance().user_id("a/b 😀").send().await.unwrap();
    assert_eq!(read.balance, BEYOND_53_BITS);
    let probed = client.get_readiness().send().await.unwrap();
    assert_eq!(probed.status, "ready");
}

#[tokio::test]
async fn swagger_ui_holds_the_document_and_needs_no_other_host() {
    let world = World::start().await;
    let page = world.client.get("/docs").send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let page = page.text().await.unwrap();
    assert!(page.trim_start().starts_with("<!DOCTYPE html>") || page.trim_start().starts_with("<html"));
    assert!(page.contains("SwaggerUIBundle"));
    // Or the browser would ask for /favicon.ico.
    assert!(page.contains("<link rel=\"icon\" href=\"data:,\">"));
    assert!(page.contains("\"changeBalance\"") && page.contains("What the change is for"));
    for reference in ["src=\"", "src='", "href=\"", "href='", "@import", "url("] {
        for (at, _) in page.match_indices(reference) {
            let target = page[at + reference.len()..].trim_start_matches(['"', '\'', ' ']);
            let external = ["http:", "https:", "//"].iter().any(|start| target.starts_with(start));
            assert!(!external, "{}", target.chars().take(100).collect::<String>());
        }
    }
}

#[tokio::test]
async fn the_metrics_are_prometheus_text_with_routes_and_never_a_user() {
    let world = World::start().await;
    let user_id = "very-private-person";
    world.deposit(user_id, 200_000).await;
    world.client.balance(user_id, None).await.expect(200);
    answer(world.client.get(&format!("/{user_id}/history")))
        .await
        .expect(200);
    for path in ["/nowhere-at-all", "/very-private-person", "/a/b/c/balance"] {
        answer(world.client.get(path)).await.expect(404);
    }
    world.client.change(&change("poor", -1, NOON)).await.expect(403);
    answer(world.client.request("BREW", "/livez")).await.expect(405);
    // An answer may reach the client before its place is free again.
    world.client.until_under_way(0).await;
    let scraped = world.client.get("/metrics").send().await.unwrap();
    let media_type = scraped.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(media_type.starts_with("text/plain"), "{media_type}");
    let text = scraped.text().await.unwrap();
    for absent in [user_id, "nowhere", "BREW"] {
        assert!(!text.contains(absent), "{absent}");
    }
    let count = |route: &str, method: &str, status: u16| {
        format!(
            "http_server_request_duration_seconds_count{{http_request_method=\"{method}\",\
             http_response_status_code=\"{status}\",http_route=\"{route}\"}} "
        )
    };
    for (counter, value) in [
        (count("/changeBalance", "POST", 200), 1),
        (count("/changeBalance", "POST", 403), 1),
        (count("/{userId}/balance", "GET", 200), 1),
        (count("/{userId}/history", "GET", 200), 1),
        (count("unmatched", "GET", 404), 3),
        (count("/livez", "_OTHER", 405), 1),
        ("balance_approver_verdicts_total{verdict=\"approved\"} ".to_owned(), 1),
        ("balance_operations_log_lines_total ".to_owned(), 4),
        ("balance_operations_in_flight ".to_owned(), 0),
    ] {
        let line = text.lines().find(|line| line.starts_with(&counter));
        assert_eq!(line, Some(format!("{counter}{value}").as_str()), "{text}");
    }
    // Each line is a comment, or a name with labels and a number.
    for line in text
        .lines()
        .filter(|line| !line.starts_with("# HELP ") && !line.starts_with("# TYPE "))
    {
        let (_, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(number.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn the_probes_tell_whether_the_process_lives_and_its_dependencies_answer() {
    let world = World::start().await;
    for (path, status) in [("/livez", "alive"), ("/readyz", "ready")] {
        let probed = answer(world.client.get(path)).await.expect(200);
        assert_eq!(probed.body, json!({ "status": status }));
    }
    let drop = "DROP TABLE balance, changes_history, balance_checkpoints CASCADE";
    world.database.client().await.batch_execute(drop).await.unwrap();
    let probed = world.client.until_ready_is(503).await.expect_problem(503, "not_ready");
    assert!(probed.detail().contains("balance migrate"), "{}", probed.detail());
    answer(world.client.get("/livez")).await.expect(200);
}
