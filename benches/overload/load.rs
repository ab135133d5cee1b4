//! Clients that put a load on a replica: as many requests as they can, or so many a second whether they are answered or
//! not.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Outcome;

/// Longer than the service takes for any answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the service asks those to wait whom it refuses.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Connections are opened in groups of so many, fewer than the queue of a listener holds.
const TOGETHER: usize = 500;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Balances of many users as of now.
    Read,
    /// Changes in order of many users.
    Change,
}

/// How fast.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next request when the one before is answered, a second later when it is refused, as `Retry-After` says.
    AnswerByAnswer,
    /// So many requests a second in all. A connection that still waits for an answer sends its next one late.
    PerSecond(f64),
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What is asked for.
    pub work: Work,
    /// By how many connections.
    pub connections: usize,
    /// How fast.
    pub pace: Pace,
    /// For how long it is counted, after a warm-up of a third of it.
    pub counted: Duration,
}

/// Answers of one kind, by how long each took.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

/// What came of a load.
#[derive(Default)]
pub struct Answers {
    /// Requests sent while it was counted, a second.
    pub offered: f64,
    /// 200, a second.
    pub good: f64,
    /// 200.
    pub accepted: Latencies,
    /// 503 with `Retry-After`.
    pub refused: Latencies,
    /// Anything else: other statuses, 503 without `Retry-After`, broken connections, no answer.
    pub wrong: usize,
}

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds, or nothing of nothing.
    pub fn percentile(&mut self, part: f64) -> Option<f64> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        Some(self.0[(last as f64 * part).round() as usize].as_secs_f64() * 1e3)
    }

    /// How many took longer than that, of all.
    pub fn share_above(&self, bound: Duration) -> f64 {
        let above = self.0.iter().filter(|latency| **latency > bound).count();
        above as f64 / self.0.len().max(1) as f64
    }
}

enum Kind {
    Good,
    Refused,
    Wrong,
}

struct Plan {
    load: Load,
    address: SocketAddr,
    begin: Instant,
    count_from: Instant,
    end: Instant,
}

/// Puts the load on the server, and tells what came of it.
///
/// # Errors
///
/// If a connection cannot be opened.
pub async fn run(address: SocketAddr, load: Load) -> Outcome<Answers> {
    let mut streams = Vec::with_capacity(load.connections);
    while streams.len() < load.connections {
        let together = TOGETHER.min(load.connections - streams.len());
        let opened = futures_util::future::try_join_all((0..together).map(|_| TcpStream::connect(address)));
        streams.extend(timeout(PATIENCE, opened).await??);
    }
    let begin = Instant::now();
    let plan = Rc::new(Plan {
        load,
        address,
        begin,
        count_from: begin + load.counted / 3,
        end: begin + load.counted / 3 + load.counted,
    });
    let clients = LocalSet::new();
    let started = streams.into_iter().enumerate().map(|(number, stream)| {
        let plan = Rc::clone(&plan);
        clients.spawn_local(async move { work(number, stream, &plan).await })
    });
    let started: Vec<_> = started.collect();
    let mut answers = Answers::default();
    let mut sent = 0;
    clients
        .run_until(async {
            for client in started {
                let (more, theirs) = client.await?;
                sent += more;
                answers.accepted.0.extend(theirs.accepted.0);
                answers.refused.0.extend(theirs.refused.0);
                answers.wrong += theirs.wrong;
            }
            Outcome::Ok(())
        })
        .await?;
    let seconds = load.counted.as_secs_f64();
    answers.offered = f64::from(sent) / seconds;
    answers.good = answers.accepted.count() as f64 / seconds;
    Ok(answers)
}

/// One client: how many requests it has sent while they counted, and what came back.
async fn work(number: usize, mut stream: TcpStream, plan: &Plan) -> (u32, Answers) {
    let (mut sent, mut answers) = (0, Answers::default());
    let mut buffer = vec![0; 2_048];
    let mut next = match plan.load.pace {
        Pace::AnswerByAnswer => plan.begin,
        Pace::PerSecond(rate) => plan.begin + Duration::from_secs_f64(number as f64 / rate),
    };
    // Users of a client are its own, so that what is measured is not how they race.
    for step in 0_u64.. {
        sleep_until(next).await;
        let began = Instant::now();
        if began >= plan.end {
            break;
        }
        if let Pace::PerSecond(rate) = plan.load.pace {
            next += Duration::from_secs_f64(plan.load.connections as f64 / rate);
        }
        let request = request(plan.load.work, number as u64 * 7 + step % 7);
        let kind = match timeout(PATIENCE, exchange(&mut stream, &request, &mut buffer)).await {
            Ok(Ok(kind)) => kind,
            _ => {
                // Whoever is cut off comes again.
                if let Ok(Ok(again)) = timeout(PATIENCE, TcpStream::connect(plan.address)).await {
                    stream = again;
                }
                Kind::Wrong
            }
        };
        let latency = began.elapsed();
        if matches!((&kind, plan.load.pace), (Kind::Refused, Pace::AnswerByAnswer)) {
            next = began + latency + RETRY_AFTER;
        }
        // An answer counts where it comes, a request where it goes.
        let counts = |at: Instant| at >= plan.count_from && at < plan.end;
        sent += u32::from(counts(began));
        if counts(began + latency) {
            match kind {
                Kind::Good => answers.accepted.0.push(latency),
                Kind::Refused => answers.refused.0.push(latency),
                Kind::Wrong => answers.wrong += 1,
            }
        }
    }
    (sent, answers)
}

fn request(work: Work, user: u64) -> String {
    match work {
        Work::Read => format!("GET /o{user}/balance HTTP/1.1\r\nhost: x\r\n\r\n"),
        Work::Change => {
            let body = format!(
                r#"{{"userId":"o{user}","context":"overload","balanceChange":1,"timestamp":"2026-01-31T12:00:00Z"}}"#
            );
            format!(
                "POST /changeBalance HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        }
    }
}

/// Sends a request and takes its answer, which fits into the buffer.
async fn exchange(stream: &mut TcpStream, request: &str, buffer: &mut [u8]) -> Outcome<Kind> {
    stream.write_all(request.as_bytes()).await?;
    let mut length = 0;
    loop {
        let read = stream.read(&mut buffer[length..]).await?;
        if read == 0 {
            return Err("the connection was closed".into());
        }
        length += read;
        let text = std::str::from_utf8(&buffer[..length])?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let (_, rest) = head.split_once("content-length: ").ok_or("no length")?;
        let wanted: usize = rest.lines().next().unwrap_or_default().parse()?;
        if body.len() < wanted {
            continue;
        }
        return Ok(match head.get(9..12) {
            Some("200") => Kind::Good,
            Some("503") if head.contains("retry-after: ") => Kind::Refused,
            _ => Kind::Wrong,
        });
    }
}
