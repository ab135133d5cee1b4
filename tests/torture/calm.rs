//! After the storm: nothing is left over, and nothing spins.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::cluster::Cluster;
use crate::support::usage::Usage;

/// The bounds of a replica at rest.
const MOST_DESCRIPTORS: usize = 200;
const MOST_IDLE_TICKS: u64 = 20;
const IDLE_FOR: Duration = Duration::from_secs(1);
/// DATABASE_CONNECTIONS of each replica, and one that `/readyz` may have.
const MOST_SESSIONS: i64 = 17;

/// What is wrong now that nobody asks anything any more.
pub async fn troubles(cluster: &Cluster, sql: &Client) -> Vec<String> {
    let mut troubles = sessions(cluster, sql).await;
    let usage = || -> Vec<Option<Usage>> {
        let running = cluster.sites.iter().map(|site| site.running.as_ref());
        running.map(|replica| Usage::of(replica?.process_id())).collect()
    };
    let before = usage();
    // Not for something to happen: a process that spins is seen by the time it takes.
    sleep(IDLE_FOR).await;
    for (number, (before, after)) in before.into_iter().zip(usage()).enumerate() {
        let (Some(before), Some(after)) = (before, after) else {
            troubles.push(format!("replica {} does not run", number + 1));
            continue;
        };
        let ticks = after.processor_ticks - before.processor_ticks;
        if ticks > MOST_IDLE_TICKS || after.descriptors > MOST_DESCRIPTORS {
            troubles.push(format!(
                "replica {} at rest: {ticks} ticks a second, {after:?}",
                number + 1
            ));
        }
    }
    troubles
}

async fn sessions(cluster: &Cluster, sql: &Client) -> Vec<String> {
    let left = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    let most = MOST_SESSIONS * i64::try_from(cluster.sites.len()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let row = sql.query_one(left, &[]).await.unwrap();
        let (sessions, busy): (i64, i64) = (row.get(0), row.get(1));
        // `/readyz` is asked by the load balancer all the time; what is left over stays.
        if busy == 0 && sessions <= most {
            return Vec::new();
        }
        if Instant::now() >= deadline {
            return vec![format!("{sessions} sessions are left, {busy} of them busy")];
        }
        sleep(Duration::from_millis(20)).await;
    }
}
