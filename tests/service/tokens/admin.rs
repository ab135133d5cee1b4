//! A second address for metrics and documentation.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::*;
use crate::support::approver::TestApprover;
use crate::support::postgres::fresh_database;
use crate::support::replica::ReplicaOptions;

const ADMIN_PATHS: [&str; 3] = ["/metrics", "/docs", "/openapi.json"];

/// A replica with two addresses, and a client of each.
struct TwoAddresses {
    world: World,
    admin_url: String,
    admin: ServiceClient,
}

impl TwoAddresses {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let mut world = World::with(|options| options.set("ADMIN_LISTEN", "127.0.0.1:0").set_all(settings)).await;
        let said = world.replica.said("serving metrics and documentation address=").await;
        let (_, address) = said.split_once("address=").unwrap();
        let admin_url = format!("http://{address}");
        Self {
            admin: ServiceClient::new(&admin_url),
            admin_url,
            world,
        }
    }
}

async fn status(client: &ServiceClient, path: &str) -> u16 {
    client.get(path).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn metrics_and_documentation_are_on_the_second_address_alone_and_operations_on_the_first() {
    let TwoAddresses { world, admin, .. } = TwoAddresses::start(&[]).await;
    for path in ADMIN_PATHS {
        assert_eq!(status(&admin, path).await, 200, "{path}");
        let refused = answer(world.client.get(path)).await.expect_problem(404, "not_found");
        assert!(!refused.detail().contains("metrics"), "{}", refused.detail());
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(status(&admin, path).await, 200, "{path}");
        assert_eq!(status(&world.client, path).await, 200, "{path}");
    }
    for (_, request) in operations(&admin).into_iter().take(4) {
        answer(request).await.expect_problem(404, "not_found");
    }
    for (_, request) in operations(&world.client).into_iter().take(4) {
        answer(request).await.expect(200);
    }
    // Whoever is called so can be asked for all the same.
    world.client.balance("metrics", None).await.expect(200);
    assert_eq!(world.replica.log_lines().len(), 5);
    let committed = include_str!("../../../openapi/openapi.json");
    let served = admin.get("/openapi.json").send().await.unwrap();
    assert!(served.text().await.unwrap() == committed);
}

#[tokio::test]
async fn one_path_cannot_be_made_to_look_like_another() {
    let TwoAddresses {
        world,
        admin,
        admin_url,
    } = TwoAddresses::start(&[]).await;
    for path in [
        "/metrics/",
        "//metrics",
        "/./metrics",
        "/x/../metrics",
        "/%6Detrics",
        "/metrics%2F",
        "/docs/index.html",
        "/METRICS",
    ] {
        assert_eq!(raw::get(&world.replica.url, path).await.status, 404, "{path}");
    }
    for path in [
        "/alice/balance/",
        "//alice/balance",
        "/alice/%62alance",
        "/livez/../alice/balance",
        "/changebalance",
    ] {
        assert_eq!(raw::get(&admin_url, path).await.status, 404, "{path}");
    }
    let absolute = format!("GET {admin_url}/metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let answered = raw::exchange(&world.replica.url, absolute.as_bytes()).await.unwrap();
    assert_eq!(answered.status, 404);
    assert_eq!(status(&admin, "/metrics").await, 200);
}

#[tokio::test]
async fn clients_who_take_all_connections_keep_no_operator_out() {
    let TwoAddresses { world, admin, .. } = TwoAddresses::start(&[("CONNECTIONS", "2")]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(raw::send(&world.replica.url, b"GET /livez HTTP/1.1\r\n").await);
    }
    answer(ServiceClient::new(&world.replica.url).get("/livez"))
        .await
        .expect_problem(503, "overloaded");
    for path in ["/livez", "/readyz", "/metrics", "/docs"] {
        assert_eq!(status(&admin, path).await, 200, "{path}");
    }
    drop(held);
}

#[tokio::test]
async fn an_address_that_is_wrong_or_taken_stops_the_start_with_a_line_that_names_it() {
    let (database, approver) = (fresh_database().await, TestApprover::start().await);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (value, says) in [
        ("localhost", "\"localhost\""),
        ("8081", "an IP address"),
        (&taken, &taken),
    ] {
        let options = ReplicaOptions::new(&database.url, &approver.url()).set("ADMIN_LISTEN", value);
        let mut replica = options.spawn();
        let said = replica.said("balance: ADMIN_LISTEN: ").await;
        assert!(said.contains(says), "{said}");
        assert_eq!(replica.ended().await.code(), Some(1));
    }
}

#[tokio::test]
async fn operators_can_look_on_while_the_last_clients_are_answered_and_the_replica_then_ends() {
    let settings = [
        ("OPERATION_TIMEOUT_MS", "60000"),
        ("APPROVER_TIMEOUT_MS", "60000"),
        ("SHUTDOWN_TIMEOUT_MS", "60000"),
    ];
    let TwoAddresses { mut world, admin, .. } = TwoAddresses::start(&settings).await;
    let gate = Arc::new(Semaphore::new(0));
    world.approver.hold(&gate);
    let client = world.client.clone();
    let waiting = tokio::spawn(async move { client.change(&change("alice", 200_000, NOON)).await });
    world.approver.until_called(1).await;
    world.replica.signal(Signal::SIGTERM);
    let refused = loop {
        let probed = admin
            .get("/readyz")
            .send()
            .await
            .expect("it is there until clients are answered");
        if probed.status() == 503 {
            break probed;
        }
        yield_now().await;
    };
    assert!(refused.text().await.unwrap().contains("stopping"));
    assert_eq!(admin.metric("balance_operations_in_flight").await, 1);
    gate.add_permits(1);
    waiting.await.unwrap().expect(200);
    assert!(world.replica.ended().await.success());
}
