//! Which of the open connections still lead to a server that can be trusted.
//!
//! A network that swallows connections says nothing. The first one that dies of silence casts doubt on all that have not
//! answered since: they are closed instead of being tried, so that a failure costs one deadline, whatever their number.
//! A server that became read-only, and a pooler that mixes up statements, cast the same doubt.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Connections whose last answer is older than this are closed; none until the first doubt. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Trust(Arc<Mutex<Option<Instant>>>);

impl Trust {
    /// Distrusts connections whose last answer is older than `since`.
    pub(super) fn withdraw(&self, since: Instant) {
        let mut doubted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *doubted = doubted.max(Some(since));
    }

    /// Whether a connection that answered last at this moment is trusted.
    pub(super) fn extends_to(&self, answered_at: Instant) -> bool {
        let doubted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doubted.is_none_or(|since| answered_at >= since)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_is_trusted_again_only_when_it_has_answered_since_the_doubt() {
        let (trust, now) = (Trust::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        assert!(trust.extends_to(now));
        trust.withdraw(later);
        assert!(!trust.extends_to(now) && trust.extends_to(later));
        // An earlier doubt does not lift a later one.
        trust.withdraw(now);
        assert!(!trust.extends_to(now));
    }
}
