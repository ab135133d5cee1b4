//! The rows that put a load on servers: what the load is, who takes it, and what is to be reached.

use crate::arguments::{RowName, Settings, Sizes};
use crate::data::{Loaded, Users};
use crate::pgbench::PgbenchWork;
use crate::results::Contender;
use crate::{Outcome, format::thousands};

/// How late a backdated change may be, in seconds.
const LATE_SECONDS: u32 = 3_600;

/// What is asked of the servers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A random user's balance now.
    ReadNow,
    /// A random user's balance at a random moment of the history.
    ReadPast,
    /// A random user's balance grows, now.
    Change,
    /// One user's balance grows, now.
    Hot,
    /// A random user's balance grows; so many percent of the changes are stamped up to an hour ago.
    Backdated(u32),
    /// So many percent are changes in order, the others reads.
    Mixed(u32),
}

/// What is to be reached, with the most connections.
#[derive(Clone, Copy, PartialEq)]
pub enum Target {
    /// At least so much of the throughput of another.
    Times(f64, Contender),
    /// 99 of a hundred requests below so many milliseconds.
    P99Below(f64),
}

/// A row.
pub struct LoadRow {
    /// Its name.
    pub name: RowName,
    /// What the load is.
    pub work: Work,
    /// What is to be reached.
    pub targets: &'static [Target],
    /// What pgbench does for it.
    pub pgbench: Option<PgbenchWork>,
}

/// In the order of the table.
pub const LOAD_ROWS: [LoadRow; 7] = [
    LoadRow {
        name: RowName::ReadNow,
        work: Work::ReadNow,
        targets: &[Target::Times(0.80, Contender::Ceiling)],
        pgbench: Some(PgbenchWork::Read),
    },
    LoadRow {
        name: RowName::ReadPast,
        work: Work::ReadPast,
        targets: &[Target::Times(0.55, Contender::Ceiling)],
        pgbench: None,
    },
    LoadRow {
        name: RowName::Change,
        work: Work::Change,
        targets: &[
            Target::Times(0.50, Contender::Ceiling),
            Target::Times(2.0, Contender::Pgbench),
        ],
        pgbench: Some(PgbenchWork::Change),
    },
    LoadRow {
        name: RowName::Hot,
        work: Work::Hot,
        targets: &[
            Target::Times(0.50, Contender::Ceiling),
            Target::Times(20.0, Contender::Plain),
            Target::P99Below(50.0),
        ],
        pgbench: None,
    },
    LoadRow {
        name: RowName::Backdated10,
        work: Work::Backdated(10),
        targets: &[Target::Times(0.35, Contender::Ceiling)],
        pgbench: None,
    },
    LoadRow {
        name: RowName::Backdated50,
        work: Work::Backdated(50),
        targets: &[Target::Times(0.35, Contender::Ceiling)],
        pgbench: None,
    },
    LoadRow {
        name: RowName::Mixed,
        work: Work::Mixed(10),
        targets: &[Target::Times(0.65, Contender::Ceiling)],
        pgbench: None,
    },
];

impl Work {
    /// Its name in tables.
    pub fn title(self, sizes: &Sizes) -> String {
        let users = thousands(f64::from(sizes.users));
        let past_users = thousands(f64::from(sizes.past_users));
        let operations = sizes.past_operations;
        match self {
            Work::ReadNow => format!("read now, {users} users"),
            Work::ReadPast => format!("read at a random past moment, {past_users} users × {operations} operations"),
            Work::Change => format!("change in order, {users} users"),
            Work::Hot => "change, one hot user, clients stamping their own clock's now".to_owned(),
            Work::Backdated(share) => format!("change, {past_users} users, {share}% backdated by up to an hour"),
            Work::Mixed(changes) => format!("{}% reads, {changes}% changes", 100 - changes),
        }
    }

    /// Its name in progress and charts.
    pub fn short(self) -> String {
        match self {
            Work::ReadNow => "read now".to_owned(),
            Work::ReadPast => "read in the past".to_owned(),
            Work::Change => "change in order".to_owned(),
            Work::Hot => "change, hot user".to_owned(),
            Work::Backdated(share) => format!("change, {share}% late"),
            Work::Mixed(changes) => format!("reads, {changes}% changes"),
        }
    }

    /// Whose balances are asked for or changed.
    pub fn users(self) -> Users {
        match self {
            Work::ReadNow | Work::Change | Work::Mixed(_) => Users::Many,
            Work::ReadPast | Work::Backdated(_) => Users::Past,
            Work::Hot => Users::Hot,
        }
    }

    /// Whether anything is stored.
    pub fn changes(self) -> bool {
        !matches!(self, Work::ReadNow | Work::ReadPast)
    }

    /// The load as the generator's script takes it. `hot_user` is one that nobody has heard of.
    ///
    /// # Errors
    ///
    /// If the clock is before 1970.
    pub fn load(
        self,
        sizes: &Sizes,
        loaded: &Loaded,
        hot_user: String,
        seed: u32,
    ) -> Outcome<Vec<(&'static str, String)>> {
        let percent = |share: u32| (f64::from(share) / 100.0).to_string();
        let mut load = match self {
            Work::ReadNow => vec![("work", "read_now".to_owned())],
            Work::ReadPast => {
                let (from, to) = loaded.past_seconds(sizes)?;
                let work = ("work", "read_past".to_owned());
                vec![work, ("from", from.to_string()), ("to", to.to_string())]
            }
            Work::Change | Work::Hot => vec![("work", "change".to_owned())],
            Work::Backdated(share) => vec![
                ("work", "backdated".to_owned()),
                ("share", percent(share)),
                ("late", LATE_SECONDS.to_string()),
            ],
            Work::Mixed(share) => vec![("work", "mixed".to_owned()), ("share", percent(share))],
        };
        let (prefix, users) = match self.users() {
            Users::Many => (Users::Many.prefix().to_owned(), sizes.users),
            Users::Past => (Users::Past.prefix().to_owned(), sizes.past_users),
            Users::Hot | Users::Long => (hot_user, 1),
        };
        load.extend([
            ("prefix", prefix),
            ("users", users.to_string()),
            ("seed", seed.to_string()),
        ]);
        Ok(load)
    }
}

impl LoadRow {
    /// Who is measured with so many connections: all with the most, the service and the ceiling with fewer. A quick run
    /// leaves out the plain server where no target names it.
    pub fn contenders(&self, settings: &Settings, connections: u32) -> Vec<Contender> {
        let mut contenders = vec![Contender::Service, Contender::Ceiling];
        if connections == settings.most_connections() {
            if self.has_plain(settings) {
                contenders.push(Contender::Plain);
            }
            contenders.extend(self.pgbench.map(|_| Contender::Pgbench));
        }
        contenders
    }

    /// Whether the plain server takes part.
    pub fn has_plain(&self, settings: &Settings) -> bool {
        let named = |target: &Target| matches!(target, Target::Times(_, Contender::Plain));
        !settings.quick || self.targets.iter().any(named)
    }
}
