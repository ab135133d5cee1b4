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
    /// The newest operations up to a moment after all operations.
    History {
        user: String,
        to: Micros,
        limit: usize,
    },
}

impl Ask {
    pub fn user(&self) -> &str {
        match self {
            Self::Change(change) => &change.user,
            Self::Balance { user, .. } | Self::History { user, .. } => user,
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

/// What one client asked and heard. Times are from the beginning of the run.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub ask: Ask,
    pub sent_at: Duration,
    /// When the answer was there or given up on.
    pub ended_at: Duration,
    /// Nothing where no answer of the service came: the connection broke, the client hung up, or the load balancer
    /// answered.
    pub said: Option<Said>,
}

/// What the Approver has answered.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub user: String,
    pub change: i64,
    pub approved: bool,
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
    /// Changes larger than this, either way, need approval.
    pub threshold: u64,
}
