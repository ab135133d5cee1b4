//! A standby that lags is promoted: answered changes are lost, and `balance verify --operations-log` names each of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::checker::{self, Kind};
use crate::cluster::Cluster;
use crate::evidence::Evidence;
use crate::model::Random;
use crate::servers::Replication;
use crate::support::postgres::STORED;
use crate::workload::{Recorder, Workload};
use crate::{CLIENTS, evidence, verify};

/// Stored by each of the three: both servers, the one that dies alone, and the one that is promoted.
const STORED_EACH: i64 = 300;
const GIVE_UP: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_each_change_that_is_lost_when_a_standby_that_lags_is_promoted() {
    let mut cluster = Cluster::start(Replication::Asynchronous).await;
    let recorder = Arc::new(Recorder::new(cluster.urls()));
    let mut workload = Workload::start(&recorder, CLIENTS, &mut Random(1));
    until_stored(&cluster.sql().await, STORED_EACH).await;
    cluster.servers.hold_stream();
    until_stored(&cluster.sql().await, 2 * STORED_EACH).await;
    cluster.fail_over().await;
    let sql = cluster.sql().await;
    until_stored(&sql, stored(&sql).await + STORED_EACH).await;
    workload.stop().await;
    assert_eq!(cluster.terminate_all().await, Vec::<String>::new());
    let verified = verify(&cluster).await;
    let evidence = evidence(&cluster, &recorder).await;
    cluster.stop().await;

    let said = verified.expect_err("changes are lost");
    let lost = Lost::of(&evidence);
    println!(
        "{} changes were lost, {} of them heard of",
        lost.logged.len(),
        lost.heard.len()
    );
    assert!(
        !lost.heard.is_empty() && lost.heard.is_subset(&lost.logged),
        "{lost:#?}"
    );
    assert_eq!(named(&said), lost.logged, "{said}");
    // The promise that a synchronous standby keeps; without it the torture fails.
    let violations = checker::check(&evidence);
    assert!(violations.iter().any(|violation| violation.kind == Kind::LostChange));
}

async fn stored(sql: &Client) -> i64 {
    sql.query_one(STORED, &[]).await.unwrap().get(0)
}

async fn until_stored(sql: &Client, at_least: i64) {
    let reached = timeout(GIVE_UP, async {
        while stored(sql).await < at_least {
            sleep(Duration::from_millis(10)).await;
        }
    });
    reached.await.expect("changes are stored");
}

/// Operations that were answered as accepted and are not stored.
#[derive(Debug)]
struct Lost {
    /// The changes that a client was told of.
    heard: BTreeSet<String>,
    /// The changes that a log has.
    logged: BTreeSet<String>,
}

impl Lost {
    fn of(evidence: &Evidence) -> Self {
        let stored = evidence.stored.values().flat_map(|user| &user.history);
        let stored: BTreeSet<&str> = stored.map(|one| one.operation_id.as_str()).collect();
        let lost = |id: &&str| !stored.contains(id);
        let answers = evidence.exchanges.iter().filter_map(|exchange| exchange.said());
        let heard = answers.filter_map(|said| said.body["operationId"].as_str());
        let lines = evidence.logs.iter().flat_map(|log| &log.lines);
        let logged = lines.filter(|line| matches!(line["outcome"].as_str(), Some("accepted" | "replayed")));
        let logged = logged.filter_map(|line| line["operationId"].as_str());
        Self {
            heard: heard.filter(lost).map(str::to_owned).collect(),
            logged: logged.filter(lost).map(str::to_owned).collect(),
        }
    }
}

/// The operations that `balance verify` names; it finds nothing else.
fn named(said: &str) -> BTreeSet<String> {
    let mut lines: Vec<_> = said.lines().collect();
    let summary = lines.pop();
    assert!(summary.is_some_and(|summary| summary.contains("findings: ")), "{said}");
    let id_of = |line: &str| {
        let (_, rest) = line.split_once(": operation ")?;
        let (id, _) = rest.split_once(": expected in the history, since the line says that it was accepted")?;
        Some(id.to_owned())
    };
    let ids = lines.iter().map(|line| id_of(line).unwrap_or_else(|| panic!("{line}")));
    ids.collect()
}
