//! Moments, headers, paths and queries that are none.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::HeaderValue;

use super::{EXAMPLE, Untouched, with};

const NO_MOMENTS: [&str; 24] = [
    "",
    "now",
    "1769860800",
    "2026-01-31",
    "2026-01-31T12:00:00",
    "2026-01-31T12:00:00.5",
    "2026-01-31T12:00Z",
    "2026-01-31 12:00:00Z",
    "20260131T120000Z",
    "2026-01-31T24:00:00Z",
    "2026-01-31T12:60:00Z",
    "2026-01-31T12:00:61Z",
    "2026-01-31T12:00:60Z",
    "2026-02-30T12:00:00Z",
    "2025-02-29T12:00:00Z",
    "2026-13-01T12:00:00Z",
    "2026-00-01T12:00:00Z",
    "10000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
    "2026-01-31T12:00:00+0200",
    "2026-01-31T12:00:00+24:00",
    "2026-01-31T12:00:00.Z",
    " 2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00Z[UTC]",
];

#[tokio::test]
async fn what_is_no_moment_is_refused_in_a_body_and_in_a_query() {
    let untouched = Untouched::start().await;
    let beyond = [
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
    ];
    let not_rfc3339 = NO_MOMENTS.iter().map(|text| (text, "RFC 3339"));
    for (text, rule) in not_rfc3339.chain(beyond.iter().map(|text| (text, "9999-12-31T23:59:59.999999Z"))) {
        untouched
            .refuses_body(with("timestamp", &format!("{text:?}")), &["timestamp ", rule, EXAMPLE])
            .await;
        let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC);
        for (path, name) in [
            ("balance", "timestamp"),
            ("available", "timestamp"),
            ("history", "from"),
            ("history", "to"),
        ] {
            let request = untouched.world.client.get(&format!("/alice/{path}?{name}={encoded}"));
            untouched.refuses(request, &[&format!("{name} "), rule, EXAMPLE]).await;
        }
    }
    untouched.stayed_so().await;
}

#[tokio::test]
async fn a_bad_idempotency_key_is_refused() {
    let untouched = Untouched::start().await;
    let long = "k".repeat(256);
    let quoted = format!("\"{long}\"");
    let keys: [&[u8]; 13] = [
        b"",
        b" ",
        b"\"\"",
        b"a b",
        b"\"a b\"",
        b"\"k",
        b"\"k\"x",
        b"\"k\\\"",
        b"\"k\\n\"",
        b"a\tb",
        "ключ".as_bytes(),
        long.as_bytes(),
        quoted.as_bytes(),
    ];
    let needles = ["Idempotency-Key ", EXAMPLE];
    for key in keys {
        let key = HeaderValue::from_bytes(key).unwrap();
        let request = untouched
            .world
            .client
            .post_body(with("", ""))
            .header("idempotency-key", key);
        untouched.refuses(request, &needles).await;
    }
    let request = untouched.world.client.post_body(with("", ""));
    let twice = request.header("idempotency-key", "k").header("idempotency-key", "k");
    untouched.refuses(twice, &["Idempotency-Key ", "once", EXAMPLE]).await;
    untouched.stayed_so().await;
}

#[tokio::test]
async fn a_bad_path_or_query_is_refused_by_the_name_of_its_parameter() {
    let untouched = Untouched::start().await;
    let long = "%D1%91".repeat(257);
    for id in ["%00", "a%0A", "%7F", "%C2%85", &long] {
        for operation in ["balance", "available", "history"] {
            let request = untouched.world.client.get(&format!("/{id}/{operation}"));
            untouched
                .refuses(request, &["userId ", "1 to 256 characters", EXAMPLE])
                .await;
        }
    }
    for id in ["%FF", "%C3", "a%ED%A0%80"] {
        let request = untouched.world.client.get(&format!("/{id}/balance"));
        untouched.refuses(request, &["userId ", "UTF-8", EXAMPLE]).await;
    }
    let limit = ["limit ", "1 to 1000", EXAMPLE];
    let order = ["order ", "asc or desc", EXAMPLE];
    let cursor = ["cursor ", "nextCursor"];
    for (query, needles) in [
        (
            "balance?timestamp=2026-01-31T12:00:00Z&timestamp=2026-01-31T12:00:00Z",
            &["timestamp ", "once"][..],
        ),
        ("balance?timestamp=x&time%73tamp=y", &["timestamp ", "once"]),
        (
            "balance?timestmap=2026-01-31T12:00:00Z",
            &["timestmap", "known: timestamp"],
        ),
        (
            "balance?Timestamp=2026-01-31T12:00:00Z",
            &["Timestamp", "known: timestamp"],
        ),
        ("available?timestamp=", &["timestamp ", "RFC 3339", EXAMPLE]),
        ("available?at=x", &["at", "known: timestamp"]),
        ("balance?knownAt=", &["knownAt ", "RFC 3339", EXAMPLE]),
        (
            "balance?knownAt=2026-01-31T12:00:00",
            &["knownAt ", "RFC 3339", EXAMPLE],
        ),
        (
            "balance?knownAt=2026-01-31T12:00:00Z&knownAt=2026-01-31T12:00:00Z",
            &["knownAt ", "once"],
        ),
        ("balance?knownat=x", &["knownat", "known: timestamp, knownAt"]),
        ("available?knownAt=x", &["knownAt", "known: timestamp"]),
        ("history?knownAt=x", &["knownAt ", "RFC 3339", EXAMPLE]),
        ("balance?at", &["at", "known: timestamp"]),
        ("balance?timestamp", &["timestamp ", "RFC 3339", EXAMPLE]),
        ("balance?timestamp=%FF", &["timestamp "]),
        ("balance?limit=1", &["limit", "known: timestamp"]),
        (
            "history?page=2",
            &["page", "known: from, to, order, limit, knownAt, cursor"],
        ),
        ("history?limit=0", &limit),
        ("history?limit=1001", &limit),
        ("history?limit=-1", &limit),
        ("history?limit=%2B1", &limit),
        ("history?limit=1.0", &limit),
        ("history?limit=", &limit),
        ("history?limit=ten", &limit),
        ("history?limit=%D9%A1", &limit),
        ("history?limit=99999999999999999999", &limit),
        ("history?limit=1&limit=2", &["limit ", "once"]),
        ("history?order=up", &order),
        ("history?order=", &order),
        ("history?order=ASC", &order),
        ("history?cursor=", &cursor),
        ("history?cursor=x", &cursor),
        ("history?cursor=AQEAAA", &cursor),
        ("history?cursor=%00", &cursor),
    ] {
        let request = untouched.world.client.get(&format!("/alice/{query}"));
        untouched.refuses(request, needles).await;
    }
    for (query, needles) in [
        ("?dry=true", &["dry", "known: dryRun"][..]),
        ("?dryrun=true", &["dryrun", "known: dryRun"]),
        ("?dryRun=1", &["dryRun ", "true or false", EXAMPLE]),
        ("?dryRun=", &["dryRun ", "true or false", EXAMPLE]),
        ("?dryRun=True", &["dryRun ", "true or false", EXAMPLE]),
        ("?dryRun=true&dryRun=true", &["dryRun ", "once"]),
    ] {
        let request = untouched.world.client.post(&format!("/changeBalance{query}"));
        let request = request.header("content-type", "application/json").body(with("", ""));
        untouched.refuses(request, needles).await;
    }
    untouched.stayed_so().await;
}
