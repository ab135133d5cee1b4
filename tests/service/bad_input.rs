//! Bad input: refused with a problem that says what is wrong and how it is right, and leaving nothing behind.

mod bodies;
mod parameters;

use std::fmt::Write as _;

use reqwest::RequestBuilder;

use crate::support::client::{Answer, answer, change};
use crate::support::world::{NOON, World};

/// What a detail about a field names, besides the field.
const EXAMPLE: &str = ", for example ";

/// A world with one operation in it, of which nothing may change.
struct Untouched {
    world: World,
    stored: Vec<String>,
}

impl Untouched {
    async fn start() -> Self {
        let world = World::start().await;
        world.deposit("alice", 100).await;
        let stored = world.stored().await;
        Self { world, stored }
    }

    /// Expects a 400 whose detail holds all of these.
    async fn refuses(&self, request: RequestBuilder, needles: &[&str]) -> Answer {
        let sent = format!("{request:?}");
        let refused = answer(request).await;
        assert_eq!(refused.status.as_u16(), 400, "{sent} {}", refused.body);
        assert_eq!(refused.code(), "invalid_request");
        for needle in needles {
            assert!(
                refused.detail().contains(needle),
                "{needle:?} in {} {sent}",
                refused.body
            );
        }
        refused
    }

    async fn refuses_body(&self, body: impl Into<Vec<u8>>, needles: &[&str]) {
        let body = body.into();
        let refused = self.refuses(self.world.client.post_body(body.clone()), needles).await;
        let shown = String::from_utf8_lossy(&body);
        assert!(refused.detail().len() < 1_000, "{shown}: {}", refused.detail());
    }

    /// No row, no version step, no line.
    async fn stayed_so(self) {
        assert_eq!(self.world.stored().await, self.stored);
        assert_eq!(self.world.replica.log_lines().len(), 1);
        assert!(self.world.approver.calls().is_empty());
        let readiness = answer(self.world.client.get("/readyz")).await;
        readiness.expect(200);
    }
}

/// A body with this field's JSON replaced.
fn with(field: &str, json: &str) -> String {
    let mut body = String::from("{");
    for (name, usual) in [
        ("userId", "\"alice\""),
        ("context", "\"\""),
        ("balanceChange", "1"),
        ("timestamp", "\"2026-01-31T12:00:00Z\""),
    ] {
        let value = if name == field { json } else { usual };
        let comma = if name == "userId" { "" } else { "," };
        write!(body, "{comma}\"{name}\":{value}").unwrap();
    }
    body + "}"
}

#[tokio::test]
async fn what_looks_odd_but_is_right_is_taken() {
    let world = World::start().await;
    for (sent, kept) in [
        ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123456Z"),
        ("2026-01-31T12:00:00.999999999Z", "2026-01-31T12:00:00.999999Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
        ("2016-12-31T18:59:60.5-05:00", "2016-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("1582-10-10T12:00:00Z", "1582-10-10T12:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999Z"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00-00:00", "2026-01-31T12:00:00Z"),
        ("2024-02-29T23:59:59+23:59", "2024-02-29T00:00:59Z"),
    ] {
        let changed = world.client.change(&change(sent, 2, sent)).await.expect(200);
        assert_eq!(changed.body["timestamp"], kept, "{sent}");
        let user_id = sent.replace('+', "%2B");
        let read = world.client.balance(&user_id, Some(sent)).await.expect(200);
        assert_eq!(
            (&read.body["timestamp"], &read.body["balance"]),
            (&kept.into(), &2.into()),
            "{sent}"
        );
        let path = format!("/{user_id}/history?from={kept}&to={kept}");
        let history = answer(world.client.get(&path)).await.expect(200);
        assert_eq!(history.body["operations"][0]["timestamp"], kept);
    }
    for (field, json) in [
        ("balanceChange", "-0"),
        ("balanceChange", "9223372036854775807"),
        ("userId", r#""\ud83d\udc4d""#),
        ("context", &format!("\"{}\"", "ё".repeat(4_096))),
        ("context", r#""\n\t\u001b\u2028""#),
    ] {
        answer(world.client.post_body(with(field, json))).await.expect(200);
        let undo = change("alice", i64::MIN + 1, NOON);
        world.client.change(&undo).await;
    }
}
