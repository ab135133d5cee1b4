//! What a torture run leaves behind: what the clients asked and were told, what is stored, what the logs say, and what the
//! Approver said. The checker sees nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::model::{Micros, StoredUser};

/// A change as a client wants it; sent once, or under its key any number of times.
#[derive(Debug)]
pub struct Change {
    pub user: String,
    /// Its own: no other change of the run has it.
    pub context: String,
    pub change: i64,
    pub timestamp: Micros,
    pub key: Option<String>,
}

/// What was asked.
#[derive(Clone, Debug)]
pub enum Ask {
    Change(Arc<Change>),
    /// As of a moment, or as of now.
    Balance {
        user: String,
        at: Option<Micros>,
    },
    /// A page of the history.
    History(Arc<Page>),
}

/// Which page of a history is wanted.
#[derive(Debug)]
pub struct Page {
    pub user: String,
    pub from: Option<Micros>,
    /// After all operations; its own, but for the pages that follow each other.
    pub to: Micros,
    pub ascending: bool,
    pub limit: usize,
    /// On a page that follows another one: where that ended.
    pub beyond: Option<PageEnd>,
}

/// Where a page ends.
#[derive(Clone, Debug)]
pub struct PageEnd {
    pub cursor: String,
    /// Timestamp and version of its last operation.
    pub last: (Micros, i64),
}

impl Ask {
    pub fn user(&self) -> &str {
        match self {
            Self::Change(change) => &change.user,
            Self::Balance { user, .. } => user,
            Self::History(page) => &page.user,
        }
    }
}

/// What the service answered.
#[derive(Clone, Debug)]
pub struct Said {
    pub status: u16,
    /// Of a problem; empty otherwise.
    pub code: String,
    pub replayed: bool,
    pub body: Value,
}

impl Said {
    /// The outcome that the line of this answer has.
    pub fn outcome(&self) -> &str {
        match (self.code.as_str(), self.replayed) {
            ("", true) => "replayed",
            ("", false) => "accepted",
            (code, _) => code,
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Debug)]
pub enum Ended {
    Answered(Said),
    /// What came is no answer that the contract knows; says why.
    Malformed(String),
    /// No replica got to know of the request: the connection was refused, or the load balancer found none.
    NotReached,
    /// No answer of a replica came: the connection broke, the client hung up, or the load balancer answered that it does
    /// not know.
    Broken,
}

/// What one client asked and heard. Times are from the beginning of the run.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// To which replica it was sent, by its place among the logs; to the load balancer if it is beyond them.
    pub way: usize,
    pub ask: Ask,
    pub sent_at: Duration,
    /// The same moment on the clock that the replicas see too.
    pub sent_by_clock: Micros,
    /// When the answer was there or given up on.
    pub ended_at: Duration,
    pub ended: Ended,
}

impl Exchange {
    /// The answer, if one came that can be read.
    pub fn said(&self) -> Option<&Said> {
        match &self.ended {
            Ended::Answered(said) => Some(said),
            Ended::Malformed(_) | Ended::NotReached | Ended::Broken => None,
        }
    }

    /// Whether this very request may be the one that stored its change.
    pub fn may_have_stored(&self) -> bool {
        match &self.ended {
            Ended::Answered(said) => matches!(said.outcome(), "accepted" | "outcome_unknown"),
            Ended::Malformed(_) | Ended::Broken => true,
            Ended::NotReached => false,
        }
    }
}

/// A time in which a replica was stopped. Times are from the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// Its place among the logs.
    pub replica: usize,
    pub from: Duration,
    pub to: Duration,
}

/// What the Approver has answered. Times are from the beginning of the run.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub user: String,
    pub change: i64,
    pub approved: bool,
    /// When the call was there.
    pub asked_at: Duration,
    /// When the verdict was about to be sent.
    pub sent_at: Duration,
}

/// The operations log of one replica, over all its lives and rotations.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub instance: String,
    /// Each parsed; one that is no JSON is null.
    pub lines: Vec<Value>,
    /// How often the replica was killed: so many lines may be torn.
    pub kills: usize,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub exchanges: Vec<Exchange>,
    pub stored: BTreeMap<String, StoredUser>,
    pub logs: Vec<Log>,
    pub verdicts: Vec<Verdict>,
    pub pauses: Vec<Pause>,
    /// Changes larger than this, either way, need approval.
    pub threshold: u64,
    /// No answer comes later than this.
    pub longest_answer: Duration,
    /// Whoever asked for a verdict has given it up after this time.
    pub longest_verdict: Duration,
}

impl Evidence {
    /// How long a replica that was stopped may have slept over a request: one that was sent there, or that the load balancer
    /// may have sent there.
    pub fn slept_over(&self, exchange: &Exchange) -> Duration {
        let may_reach = |pause: &&Pause| exchange.way == pause.replica || exchange.way >= self.logs.len();
        let end = exchange
            .said()
            .map_or(exchange.sent_at + self.longest_answer, |_| exchange.ended_at);
        let slept = self.pauses.iter().filter(may_reach).filter(|pause| pause.from <= end);
        slept
            .map(|pause| pause.to.saturating_sub(exchange.sent_at.max(pause.from)))
            .sum()
    }
}
