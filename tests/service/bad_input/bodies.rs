//! Bodies that are no change.

use super::{EXAMPLE, Untouched, with};
use crate::support::client::{answer, change};
use crate::support::raw;
use crate::support::world::NOON;

#[tokio::test]
async fn a_field_of_the_wrong_type_or_range_is_named_with_its_rule_and_an_example() {
    let untouched = Untouched::start().await;
    let text = |length| format!("\"{}\"", "ё".repeat(length));
    let (long_id, long_context, deep) = (
        text(257),
        text(4_097),
        format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)),
    );
    let wrong_type = ["null", "true", "[]", "{}", "[\"alice\"]", &deep];
    let lone = [r#""\ud800""#, r#""\udc00x""#, r#""\ud800\ud800""#];

    let rule = "1 to 256 characters";
    for value in [
        r#""""#,
        &long_id,
        r#""\u0000""#,
        r#""a\u0000""#,
        r#""a\nb""#,
        r#""\u001f""#,
        r#""\u007f""#,
        r#""\u0085""#,
    ] {
        untouched
            .refuses_body(with("userId", value), &["userId ", rule, EXAMPLE])
            .await;
    }
    for value in wrong_type.iter().chain(&lone).chain(&["1", "1.5"]) {
        untouched
            .refuses_body(with("userId", value), &["userId ", "string", EXAMPLE])
            .await;
    }
    for value in [&long_context, r#""\u0000""#, r#""a\u0000b""#] {
        untouched
            .refuses_body(with("context", value), &["context ", "0 to 4096 characters", EXAMPLE])
            .await;
    }
    for value in wrong_type.iter().chain(&lone).chain(&["0"]) {
        untouched
            .refuses_body(with("context", value), &["context ", "string", EXAMPLE])
            .await;
    }
    let rule = "from -9223372036854775808 to 9223372036854775807";
    for value in [
        "1.5",
        "1.0",
        "-0.0",
        "1e3",
        "1E+3",
        "1e400",
        "9223372036854775808",
        "-9223372036854775809",
        "100000000000000000000000000000000000000000",
        "\"1\"",
        "\"\"",
        "true",
        "[]",
        "{}",
        "[1]",
    ] {
        untouched
            .refuses_body(with("balanceChange", value), &["balanceChange ", rule, EXAMPLE])
            .await;
    }
    untouched
        .refuses_body(with("balanceChange", "null"), &["balanceChange ", "number", EXAMPLE])
        .await;
    for value in wrong_type.iter().chain(&lone).chain(&["0", "1769860800"]) {
        untouched
            .refuses_body(with("timestamp", value), &["timestamp ", "string", EXAMPLE])
            .await;
    }
    untouched.stayed_so().await;
}

#[tokio::test]
async fn a_field_that_is_missing_unknown_or_given_twice_is_named() {
    let untouched = Untouched::start().await;
    for name in ["userId", "context", "balanceChange", "timestamp"] {
        let mut body = change("alice", 1, NOON);
        body.as_object_mut().unwrap().remove(name);
        untouched
            .refuses_body(body.to_string(), &[&format!("{name} is missing"), EXAMPLE])
            .await;
        let twice = format!("{{\"{name}\":1,{}", &with("", "")[1..]);
        untouched.refuses_body(twice, &["duplicate", name, "such as {"]).await;
    }
    for name in ["userid", "amount", "__proto__", "", "ё", "operationId"] {
        let more = format!("{{\"{name}\":1,{}", &with("", "")[1..]);
        untouched
            .refuses_body(more, &["unknown field", name, "such as {"])
            .await;
    }
    untouched.stayed_so().await;
}

#[tokio::test]
async fn what_is_no_json_object_is_told_how_one_looks() {
    let untouched = Untouched::start().await;
    let good = with("", "");
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = format!("{}{}", "[".repeat(32_000), "]".repeat(32_000));
    let deep_object = format!("{}1{}", "{\"a\":".repeat(9_000), "}".repeat(9_000));
    for body in [
        "",
        " ",
        "[]",
        "{",
        "}",
        "null",
        "1",
        "\"\"",
        "{]",
        "hello",
        "userId=alice",
        "<change/>",
        "\0",
        &deep,
        &deep_object,
        &good[..good.len() - 1],
        &format!("{good}{good}"),
        &format!("{good},"),
        &format!("[{good}]"),
        &format!("\u{feff}{good}"),
        &good.replace('"', "'"),
        &with("balanceChange", "01"),
        &with("balanceChange", "+1"),
        &with("balanceChange", "NaN"),
        &with("balanceChange", "0x10"),
        &with("context", "\"a\nb\""),
        &with("context", r#""\x41""#),
        &with("context", ""),
    ] {
        untouched
            .refuses_body(body, &["must be a JSON object such as {\"userId\":"])
            .await;
    }
    let broken = good.replace("alice", "\u{1}").into_bytes();
    let broken: Vec<u8> = broken
        .into_iter()
        .map(|byte| if byte == 1 { 0xff } else { byte })
        .collect();
    for body in [
        utf16,
        broken,
        b"\xff".to_vec(),
        b"{\"userId\":\"\xc3\"}".to_vec(),
        b"\x1f\x8b\x08".to_vec(),
    ] {
        untouched
            .refuses_body(body, &["must be a JSON object such as {\"userId\":"])
            .await;
    }
    untouched.stayed_so().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_or_encoded_is_refused_by_its_own_status() {
    let untouched = Untouched::start().await;
    let good = with("", "");
    let large = with("context", &format!("\"{}\"", "x".repeat(65 * 1024)));
    let post = |body: &str| untouched.world.client.post_body(body);
    answer(post(&large)).await.expect_problem(413, "payload_too_large");
    let head = "POST /changeBalance HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let chunked = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let refused = raw::exchange(&untouched.world.replica.url, chunked.as_bytes())
        .await
        .unwrap();
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (413, &"payload_too_large".into())
    );
    for encoding in ["gzip", "br", "deflate", "identity, gzip", "x"] {
        let refused = answer(post(&good).header("content-encoding", encoding)).await;
        let refused = refused.expect_problem(415, "unsupported_media_type");
        assert!(refused.detail().contains("Content-Encoding"), "{}", refused.detail());
    }
    for media_type in [
        "",
        "text/json",
        "application/json; charset=latin1",
        "multipart/form-data",
        "json",
        "*/*",
    ] {
        let request = untouched.world.client.post("/changeBalance").body(good.clone());
        let refused = answer(request.header("content-type", media_type)).await;
        let refused = refused.expect_problem(415, "unsupported_media_type");
        assert!(
            refused.detail().contains("Content-Type: application/json"),
            "{}",
            refused.detail()
        );
    }
    untouched.stayed_so().await;
}
