//! Processor time of servers and of PostgreSQL, user and system, as Linux counts it in `/proc`.

use std::fmt;

use serde::Serialize;

use crate::process::Server;

/// Linux counts in hundredths of a second, whatever its own clock.
const MICROSECONDS_A_TICK: f64 = 10_000.0;

/// How often PostgreSQL is read again because one of its processes ended meanwhile.
const READINGS: usize = 100;

/// Processor time of one request, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Processor {
    /// Of the server, or of both where there are two; `None` for pgbench, which has none.
    pub server: Option<f64>,
    /// Of all of PostgreSQL's processes.
    pub postgres: f64,
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.server {
            Some(server) => write!(f, "{server:.1} + {:.1} µs", self.postgres),
            None => write!(f, "– + {:.1} µs", self.postgres),
        }
    }
}

/// Counts processor time from when it is made.
pub struct Meter {
    servers: Vec<i32>,
    postmaster: i32,
    began: Option<Ticks>,
}

/// Processor time used until a moment.
#[derive(Clone, Copy)]
struct Ticks {
    servers: u64,
    postgres: u64,
}

impl Meter {
    /// Begins to count, for these servers and for the PostgreSQL of this postmaster.
    pub fn start(servers: &[&Server], postmaster: i32) -> Self {
        let servers = servers.iter().filter_map(|server| server.process_id()).collect();
        let mut meter = Self {
            servers,
            postmaster,
            began: None,
        };
        meter.began = meter.ticks();
        meter
    }

    /// Processor time of each request since the start; `None` where the operating system does not tell.
    pub fn per_request(&self, requests: u64) -> Option<Processor> {
        let (began, now) = (self.began?, self.ticks()?);
        let per_request =
            |before, after: u64| after.saturating_sub(before) as f64 * MICROSECONDS_A_TICK / requests as f64;
        (requests > 0).then(|| Processor {
            server: (!self.servers.is_empty()).then(|| per_request(began.servers, now.servers)),
            postgres: per_request(began.postgres, now.postgres),
        })
    }

    fn ticks(&self) -> Option<Ticks> {
        let each = self.servers.iter().map(|server| Some(Usage::of(*server)?.own));
        Some(Ticks {
            servers: each.sum::<Option<u64>>()?,
            postgres: postgres_ticks(self.postmaster)?,
        })
    }
}

/// The postmaster's own time, that of its children that have ended, and that of those that live.
fn postgres_ticks(postmaster: i32) -> Option<u64> {
    for _ in 0..READINGS {
        let before = Usage::of(postmaster)?;
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // One that ends now is counted among those that have ended.
        let children = ids.filter_map(Usage::of).filter(|usage| usage.parent == postmaster);
        let living: u64 = children.map(|child| child.own).sum();
        let after = Usage::of(postmaster)?;
        if before.ended_children == after.ended_children {
            return Some(after.own + after.ended_children + living);
        }
    }
    None
}

/// What `/proc` says of one process, in ticks.
struct Usage {
    parent: i32,
    own: u64,
    ended_children: u64,
}

impl Usage {
    fn of(process: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name may hold blanks and parentheses; the state is the first field after it.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            ended_children: ticks(13)? + ticks(14)?,
        })
    }
}
