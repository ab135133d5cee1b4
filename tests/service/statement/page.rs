//! The page for people: whole, safe, and without a script.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{HTML, get};
use crate::support::client::{answer, change};
use crate::support::world::{NOON, World};

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    let parts = text.split(begin).skip(1);
    parts.map(|part| part.split_once(end).expect("an end").0).collect()
}

#[tokio::test]
async fn what_clients_have_sent_is_shown_and_never_run() {
    let world = World::start().await;
    let evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&";
    let mut body = change(evil, 5, NOON);
    body["context"] = evil.into();
    world.client.change(&body).await.expect(200);
    let path = "/%3Cscript%3Ealert(1)%3C%2Fscript%3E%3Cimg%20src=x%20onerror=alert(1)%3E%22'%26/history";
    let response = get(&world.client, path, HTML).await;
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(response.headers().get_all("content-security-policy").iter().count(), 1);
    let page = response.text().await.unwrap();
    // In the title, the heading and the row.
    let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&quot;'&amp;";
    assert_eq!(page.matches(escaped).count(), 3, "{page}");
    for absent in [
        "<script",
        "<img",
        "javascript:",
        " onload",
        " style=",
        "http:",
        "https:",
        "@import",
        "url(",
    ] {
        assert!(!page.contains(absent), "{absent}: {page}");
    }
    let [style] = between(&page, "<style>", "</style>")[..] else {
        panic!("one style sheet: {page}");
    };
    let hash = STANDARD.encode(Sha256::digest(style));
    let expected = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    assert_eq!(policy, expected);
    world.replica.stop().await;
}

#[tokio::test]
async fn links_lead_through_all_pages_and_show_each_operation_once() {
    let world = World::start().await;
    for second in 10..33 {
        let mut body = change("a/b 😀", 10, &format!("2026-01-31T12:00:{second}Z"));
        body["context"] = format!("number {second}.").into();
        world.client.change(&body).await.expect(200);
    }
    let path = "/a%2Fb%20%F0%9F%98%80/history";
    let bounds = "from=2026-01-31T12:00:11%2B00:00&to=2026-01-31T12:00:31Z";
    for (order, first_seconds) in [("asc", [11, 12]), ("desc", [31, 30])] {
        let mut query = format!("?order={order}&limit=5&{bounds}");
        let (mut shown, mut pages, mut back) = (Vec::new(), 0, None);
        loop {
            let page = get(&world.client, &format!("{path}{query}"), HTML)
                .await
                .text()
                .await
                .unwrap();
            shown.extend(between(&page, "<bdi>", "</bdi>").into_iter().map(str::to_owned));
            pages += 1;
            let links: Vec<_> = between(&page, "href=\"?", "\"")
                .iter()
                .map(|link| link.replace("&amp;", "&"))
                .collect();
            let has_next = page.contains("rel=\"next\"");
            assert_eq!(links.len(), usize::from(has_next) + usize::from(pages > 1), "{page}");
            if pages > 1 {
                back = Some(format!("?{}", links[0]));
            }
            if !has_next {
                break;
            }
            query = format!("?{}", links.last().unwrap());
        }
        let mut expected: Vec<_> = (11..=31).map(|second| format!("number {second}.")).collect();
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!(shown, expected);
        assert_eq!(pages, 5);
        let first = get(&world.client, &format!("{path}{}", back.unwrap()), HTML)
            .await
            .text()
            .await
            .unwrap();
        let shown = between(&first, "<bdi>", "</bdi>");
        assert_eq!(shown.len(), 5);
        assert_eq!(shown[..2], first_seconds.map(|second| format!("number {second}.")));
    }
    world.replica.stop().await;
}

#[tokio::test]
async fn the_page_tells_figures_that_a_person_can_read_whatever_they_are() {
    let world = World::start().await;
    let page = async |path: &str| get(&world.client, path, HTML).await.text().await.unwrap();
    let empty = page("/nobody/history").await;
    assert!(
        empty.contains("There are no operations here.") && !empty.contains("<svg"),
        "{empty}"
    );
    for (amount, moment) in [
        (i64::MAX, "0001-01-01T00:00:00Z"),
        (-i64::MAX, "2026-01-31T12:00:00.5Z"),
        (0, "2026-01-31T12:00:00.5Z"),
        (1_234_567, "9999-12-31T23:59:59.999999Z"),
    ] {
        world.client.change(&change("a", amount, moment)).await.expect(200);
    }
    let all = page("/a/history").await;
    for shown in [
        "<html lang=\"en\">",
        "name=\"viewport\"",
        "<svg viewBox=\"0 0 360 180\" role=\"img\" aria-label=\"The balance from 0001-01-01 00:00:00 to 9999-12-31",
        "<th scope=\"col\"",
        "<time datetime=\"2026-01-31T12:00:00.5Z\">2026-01-31 12:00:00</time>",
        "+9\u{2009}223\u{2009}372\u{2009}036\u{2009}854\u{2009}775\u{2009}807",
        "\u{2212}9\u{2009}223\u{2009}372\u{2009}036\u{2009}854\u{2009}775\u{2009}807",
        "+1\u{2009}234\u{2009}567",
        ">10\u{2009}000\u{2009}000\u{2009}000\u{2009}000\u{2009}000\u{2009}000</text>",
        ">0001-01-01</text>",
        ">9999-12-31</text>",
    ] {
        assert!(all.contains(shown), "{shown}: {all}");
    }
    assert!(!all.contains("NaN") && !all.contains("inf"), "{all}");
    // What stands in the drawing is inside of it.
    let path = between(&all, "<path class=\"line\" d=\"M", "\"")[0];
    let places = path.split(['H', 'V', ' ']).map(|number| number.parse::<f64>().unwrap());
    assert!(places.into_iter().all(|place| (0.0..=360.0).contains(&place)), "{path}");
    let one = page("/a/history?limit=1").await;
    assert!(one.contains("1 operation on 9999-12-31 (UTC)"), "{one}");
    let problem = answer(world.client.get("/a/history?limit=x").header("accept", HTML)).await;
    problem.expect_problem(400, "invalid_request");
    world.replica.stop().await;
}
