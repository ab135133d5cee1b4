//! `ulimit -n 64`: clients take what descriptors they may, and never those of PostgreSQL and the operations log.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::raw;
use crate::support::replica::log_lines;
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that goes on asking.
struct Client(TcpStream);

impl Client {
    async fn ask(&mut self, request: &str) -> u16 {
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.answered().await
    }

    async fn answered(&mut self) -> u16 {
        let mut answer = vec![0; 4_096];
        let read = timeout(PATIENCE, self.0.read(&mut answer)).await;
        let read = read.expect("no client hangs").unwrap();
        let text = std::str::from_utf8(&answer[..read]).unwrap();
        text[9..12].parse().unwrap()
    }

    async fn change(&mut self, user: usize) -> u16 {
        let body =
            format!(r#"{{"userId":"user-{user}","context":"","balanceChange":1,"timestamp":"2026-01-31T12:00:00Z"}}"#);
        let length = body.len();
        let head = "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        self.ask(&format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}"))
            .await
    }
}

#[tokio::test]
async fn with_64_descriptors_more_clients_than_that_neither_stop_nor_starve_the_replica() {
    const CLIENTS: usize = 200;
    let world = World::with(|options| options.open_files(64)).await;
    let url = &world.replica.url;
    let mut coming = JoinSet::new();
    for user in 0..CLIENTS {
        let url = url.clone();
        coming.spawn(async move {
            let mut client = Client(raw::send(&url, b"").await);
            let status = client.change(user).await;
            (status == 200).then_some(client).ok_or(status)
        });
    }
    let mut inside = Vec::new();
    for outcome in coming.join_all().await {
        match outcome {
            Ok(client) => inside.push(client),
            Err(status) => assert_eq!(status, 503),
        }
    }
    let open = world.replica.descriptors();
    println!("{} of {CLIENTS} clients inside, {open} descriptors", inside.len());
    assert!(inside.len() >= 8 && open <= 64);
    let busyness = world.replica.busyness().await;
    assert!(busyness < 0.5, "{busyness}");

    // At the limit statements at once open more connections to PostgreSQL, and the log is opened anew.
    let at_once = inside.iter_mut().enumerate().map(|(user, client)| client.change(user));
    assert!(
        futures_util::future::join_all(at_once)
            .await
            .iter()
            .all(|status| *status == 200)
    );
    let rotated = world.replica.log.with_extension("1");
    std::fs::rename(&world.replica.log, &rotated).unwrap();
    world.replica.signal(Signal::SIGHUP);
    let began = Instant::now();
    while !world.replica.log.exists() {
        assert!(began.elapsed() < PATIENCE, "no new log");
        assert_eq!(inside[0].change(0).await, 200);
    }
    assert_eq!(inside[0].change(0).await, 200);
    assert!(!world.replica.log_lines().is_empty() && log_lines(&rotated).len() >= inside.len());

    drop(inside);
    let began = Instant::now();
    while raw::get(url, "/user-0/balance").await.status != 200 {
        assert!(began.elapsed() < PATIENCE, "no room");
    }
    println!("served {:?} after clients have gone", began.elapsed());
    world.replica.stop().await;
}

#[tokio::test]
async fn too_few_descriptors_are_told_in_one_line_at_the_start() {
    let output = tokio::process::Command::new("/bin/sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" serve", env!("CARGO_BIN_EXE_balance")])
        .env_clear()
        .env("DATABASE_URL", "postgres://balance@127.0.0.1:1/balance")
        .env("APPROVER_URL", "http://127.0.0.1:1")
        .env("LISTEN", "127.0.0.1:0")
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("balance: the limit on open files is 40"), "{said}");
    assert!(last.contains("DATABASE_CONNECTIONS"), "{said}");
}
