//! File descriptors, shared out: clients must never take those that PostgreSQL, the Approver and the operations log need.

use std::num::NonZeroUsize;

use nix::sys::resource::{Resource, getrlimit};

use super::ReplicaConfig;

/// For the standard streams, the runtime, signals, the listener, and the operations log with its successor while it is
/// reopened: about a dozen, and as many again to spare.
const OWN: usize = 24;
/// Of what is left, one part in so many is for calls to the Approver, and one for telling clients that there is no room.
const PART: usize = 8;

/// The limit on open files leaves nothing for clients.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit on open files is {limit}, and with DATABASE_CONNECTIONS={database_connections} {needed} are needed; \
     raise it (ulimit -n) or lower DATABASE_CONNECTIONS"
)]
pub struct TooFewDescriptors {
    limit: usize,
    database_connections: usize,
    needed: usize,
}

/// What each may take.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    connections: usize,
    turned_away: usize,
    calls: usize,
}

/// Lowers the limits of the configuration to what the limit on open files allows.
pub(super) fn fit(mut config: ReplicaConfig) -> Result<ReplicaConfig, TooFewDescriptors> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(usize::MAX, |(limit, _)| usize::try_from(limit).unwrap_or(usize::MAX));
    let wanted = Shares {
        connections: config.http.connections.get(),
        turned_away: config.http.turned_away.get(),
        calls: config.approver.calls_in_flight,
    };
    let admin = config.access.admin.as_ref();
    // Operators keep theirs, whatever clients take.
    let admin = admin.map_or(0, |admin| 1 + admin.connections.get() + admin.turned_away.get());
    let shares = share(limit, config.database.connections, admin, &wanted)?;
    if shares != wanted {
        let (connections, calls) = (shares.connections, shares.calls);
        tracing::warn!(limit, connections, calls, "the limit on open files is low");
    }
    let at_least_one = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    config.http.connections = at_least_one(shares.connections);
    config.http.turned_away = at_least_one(shares.turned_away);
    config.approver.calls_in_flight = shares.calls;
    Ok(config)
}

fn share(
    limit: usize,
    database_connections: usize,
    admin: usize,
    wanted: &Shares,
) -> Result<Shares, TooFewDescriptors> {
    let reserved = OWN + database_connections + admin;
    let rest = limit.saturating_sub(reserved);
    if rest < PART {
        return Err(TooFewDescriptors {
            limit,
            database_connections,
            needed: reserved + PART,
        });
    }
    let calls = wanted.calls.min(rest / PART);
    let turned_away = wanted.turned_away.min(rest / PART);
    Ok(Shares {
        connections: wanted.connections.min(rest - calls - turned_away),
        turned_away,
        calls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Shares = Shares {
        connections: 10_000,
        turned_away: 256,
        calls: 1_024,
    };

    #[test]
    fn no_more_descriptors_are_given_out_than_there_are() {
        for (limit, admin) in (48..20_000)
            .map(|limit| (limit, 0))
            .chain((128..20_000).map(|limit| (limit, 80)))
        {
            let Shares {
                connections,
                turned_away,
                calls,
            } = share(limit, 16, admin, &WANTED).unwrap();
            assert!(connections.min(turned_away).min(calls) > 0, "{limit}");
            assert!(connections + turned_away + calls + 16 + admin + OWN <= limit, "{limit}");
        }
    }

    #[test]
    fn where_there_are_enough_all_get_what_they_want() {
        assert_eq!(share(20_000, 16, 0, &WANTED).unwrap(), WANTED);
    }

    #[test]
    fn too_few_are_told_with_what_is_needed() {
        let message = share(47, 16, 0, &WANTED).unwrap_err().to_string();
        assert!(
            message.contains("is 47") && message.contains("48 are needed"),
            "{message}"
        );
    }
}
