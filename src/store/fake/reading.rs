//! Readings: as much of a timeline as PostgreSQL would be read for.

use std::collections::HashMap;

use super::{Database, StoredUser};
use crate::domain::{Breach, Head, Moment, Segment, SegmentLength, Timeline, Timestamp};
use crate::store::{EarlierOperation, Group, Reach, UserState};

impl Database {
    pub(super) fn states(&self, groups: &[Group<'_>], reach: Reach) -> Vec<UserState> {
        groups.iter().map(|group| self.state(group, reach)).collect()
    }

    /// As much of a user's timeline as PostgreSQL would be read for, by the table of `States`.
    fn state(&self, group: &Group<'_>, reach: Reach) -> UserState {
        let user = self.users.get(group.user_id).cloned().unwrap_or_default();
        let segments = user.segments(self.layout.segment_moments);
        let length = SegmentLength::new(u32::try_from(self.layout.segment_moments).unwrap()).unwrap();
        let open = segments.last().cloned().into_iter();
        let end = |segment: &Segment| segment.moments.last().map(|moment| moment.timestamp);
        let closed = &segments[..segments.len() - 1];
        let head = Head {
            since_checkpoint: segments
                .last()
                .map_or(0, |open| open.moments.iter().map(|one| one.operations).sum()),
            ..user.head
        };
        let mut state = UserState {
            timeline: Timeline::new(head, open.clone().collect(), length),
            earlier: user.earlier(&group.idempotency_keys),
            closed_until: None,
            deep: Some(group.deep.id),
        };
        if user.head.latest.is_none_or(|latest| group.earliest >= latest) {
            state.timeline = Timeline::new(head, Vec::new(), length);
            return state;
        }
        let behind = |timestamp: Timestamp| closed.partition_point(|segment| end(segment) < Some(timestamp));
        let first = behind(group.earliest);
        if first == closed.len() {
            let mut tail = segments[first].clone();
            tail.opening = 0;
            tail.moments.retain(|moment| moment.timestamp > group.earliest);
            state.timeline = Timeline::tail(head, vec![tail], length);
            return state;
        }
        if group.operations > 1 && closed.len() - first <= self.layout.near {
            state.timeline = Timeline::contiguous(head, segments[first..].to_vec(), length);
            return state;
        }
        let own = behind(group.deep.timestamp);
        state.closed_until = match group.operations {
            1 => closed.get(own).and_then(end),
            _ => closed.last().and_then(end),
        };
        let is_far = matches!(reach, Reach::Checkpoints(_)) && closed.len() > own + 1 + self.layout.reach;
        if is_far {
            state.deep = None;
        } else if own < closed.len() {
            let breach = Breach::of(group.deep.balance_change);
            let breached = closed[own + 1..].iter().find(|segment| is_breached(segment, breach));
            let needed = [&closed[own]].into_iter().chain(breached).cloned().chain(open);
            let lowest = closed[own + 1..].iter().filter_map(lowest).min();
            state.timeline = Timeline::new(head, needed.collect(), length).with_lowest_closed(lowest);
        }
        state
    }

    fn user(&self, user_id: &str) -> Option<&StoredUser> {
        let user = self.users.iter().find(|(id, _)| id.as_str() == user_id);
        user.map(|(_, user)| user)
    }

    pub(super) fn version(&self, user_id: &str) -> i64 {
        self.user(user_id).map_or(0, |user| user.head.version)
    }

    pub(super) fn available_at(&self, user_id: &str, at: Timestamp) -> i64 {
        let history = self.user(user_id).into_iter().flat_map(|user| &user.history);
        let moments = history.map(|row| row.operation.timestamp).filter(|own| *own > at);
        let balances = moments.chain([at]).map(|moment| self.balance_at(user_id, moment));
        balances.min().unwrap_or(0)
    }

    pub(super) fn balance_at(&self, user_id: &str, at: Timestamp) -> i64 {
        self.balance_known_at(user_id, at, i64::MAX)
    }

    fn balance_known_at(&self, user_id: &str, at: Timestamp, last_seq: i64) -> i64 {
        let history = self.user(user_id).into_iter().flat_map(|user| &user.history);
        let counted = history.filter(|row| row.operation.timestamp <= at && row.seq <= last_seq);
        // The whole sum fits, and wrapping gives it whatever a part of it comes to.
        counted.fold(0, |sum, row| sum.wrapping_add(row.operation.balance_change))
    }
}

impl StoredUser {
    /// The timeline, cut after every so many moments; the last segment is open.
    fn segments(&self, moments_each: usize) -> Vec<Segment> {
        let mut rows: Vec<_> = self.history.iter().map(|row| &row.operation).collect();
        rows.sort_by_key(|operation| operation.timestamp);
        let moments: Vec<_> = rows
            .chunk_by(|one, other| one.timestamp == other.timestamp)
            .map(|operations| Moment {
                timestamp: operations[0].timestamp,
                change: operations
                    .iter()
                    .fold(0, |sum, one| sum.wrapping_add(one.balance_change)),
                operations: u32::try_from(operations.len()).unwrap(),
            })
            .collect();
        let mut opening = 0;
        let mut segments: Vec<_> = moments
            .chunks(moments_each)
            .map(|moments| {
                let segment = Segment {
                    opening,
                    moments: moments.to_vec(),
                    closed: true,
                };
                opening += moments.iter().map(|moment| moment.change).sum::<i64>();
                segment
            })
            .collect();
        match segments.last_mut() {
            Some(last) => last.closed = false,
            None => segments.push(Segment {
                opening: 0,
                moments: Vec::new(),
                closed: false,
            }),
        }
        segments
    }

    fn earlier(&self, keys: &[&str]) -> HashMap<String, EarlierOperation> {
        let asked = self.history.iter().filter_map(|row| Some((row.key.clone()?, row)));
        let asked = asked.filter(|(key, _)| keys.contains(&key.as_str()));
        let earlier = asked.map(|(key, row)| {
            let earlier = EarlierOperation {
                id: row.operation.id,
                timestamp: row.operation.timestamp,
                balance_change: row.operation.balance_change,
                context: row.operation.context.as_str().to_owned(),
                entry: row.entry(),
            };
            (key, earlier)
        });
        earlier.collect()
    }
}

fn balances(segment: &Segment) -> impl Iterator<Item = i64> {
    segment.moments.iter().scan(segment.opening, |balance, moment| {
        *balance += moment.change;
        Some(*balance)
    })
}

fn lowest(segment: &Segment) -> Option<i64> {
    balances(segment).min()
}

fn is_breached(segment: &Segment, breach: Breach) -> bool {
    balances(segment).any(|balance| balance <= breach.lowest_at_most || balance > breach.highest_above)
}
