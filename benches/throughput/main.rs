//! Throughput of the service (work in progress).

mod ceiling;

use std::sync::Arc;
use std::time::Duration;

use balance::config::HttpConfig;
use balance::http::{Listening, Stopping, serve};
use balance::metrics::Metrics;
use ceiling::Ceiling;

fn main() {
    let listen = std::env::args().nth(1).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let config = HttpConfig {
            listen,
            connections: 10_000.try_into().unwrap(),
            shutdown_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(1),
        };
        let listening = Listening::bind(&config, Duration::from_secs(75)).await.unwrap();
        serve(
            listening,
            Arc::new(Ceiling),
            Arc::new(Metrics::new()),
            Stopping::default(),
            std::future::pending(),
            Duration::from_secs(1),
        )
        .await
        .unwrap();
    });
}
