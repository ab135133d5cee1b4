//! The memory that clients may take beyond the small share that every connection has.
//!
//! A replica's memory is bounded whatever clients do. The sum, at the default settings:
//!
//! | what | how many | each | MiB |
//! |---|---|---|---|
//! | connections with a request under way: hyper's two buffers of 16 KiB, the table of headers, futures, a small answer | 1,500 | 45 KiB | 66 |
//! | operations under way, which go on when their client hangs up, without what the budget counts | 4,096 | 13 KiB | 52 |
//! | calls to the Approver | 512 | 50 KiB | 25 |
//! | the budget: large heads, bodies, and answers | | | 28 |
//! | the budget of metrics and other answers to operators | | | 4 |
//! | batches being committed, and the page that a worker thread is writing | 3 | 4 MiB | 12 |
//! | together | | | 187 |
//!
//! The shares of connections, operations and calls were measured. TLS adds at most 60 KiB a connection: its session, a record that
//! is coming in, one that was decrypted, and one that waits to be sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{Code, Problem};

/// Up to this size, a head, body or answer belongs to the share of its connection and is not counted.
pub const UNCOUNTED_BYTES: usize = 4 * 1024;

/// How long an answer may wait for memory before it is refused.
/// Pages are read a few at once, so that a burst of them waits for its turn here.
const WAIT: Duration = Duration::from_secs(3);

/// Memory is counted in units of 1 KiB.
const UNIT: usize = 1024;

/// A budget of bytes; clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Semaphore>);

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
pub struct Reserved(OwnedSemaphorePermit);

/// Marks an answer whose bytes are shared or counted already; an extension of the response.
#[derive(Clone, Copy, Debug)]
pub struct Counted;

/// The budget has not enough left.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemory;

impl From<OutOfMemory> for Problem {
    fn from(_: OutOfMemory) -> Self {
        Problem::new(
            Code::Overloaded,
            "Other clients use all the memory that there is for large requests and answers; nothing was changed. \
             Try again after Retry-After.",
        )
    }
}

impl Memory {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }

    /// Takes `bytes` at once.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the budget has less.
    pub fn try_reserve(&self, bytes: usize) -> Result<Reserved, OutOfMemory> {
        let permit = Arc::clone(&self.0).try_acquire_many_owned(units(bytes));
        permit.map(Reserved).map_err(|_| OutOfMemory)
    }

    /// Takes `bytes`, waiting for 3 s at most.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the budget has less for all that time.
    pub async fn reserve(&self, bytes: usize) -> Result<Reserved, OutOfMemory> {
        let permit = timeout(WAIT, Arc::clone(&self.0).acquire_many_owned(units(bytes))).await;
        // The semaphore is never closed.
        permit.ok().and_then(Result::ok).map(Reserved).ok_or(OutOfMemory)
    }
}

impl Reserved {
    /// Takes what is missing to `bytes` from the same budget.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the budget has less.
    pub fn grow(&mut self, bytes: usize, memory: &Memory) -> Result<(), OutOfMemory> {
        let missing = bytes.saturating_sub(self.bytes());
        let more = memory.try_reserve(missing)?;
        self.0.merge(more.0);
        Ok(())
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let units = usize::try_from(units(bytes)).unwrap_or(usize::MAX);
        drop(self.0.split(self.0.num_permits().saturating_sub(units)));
    }

    fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT
    }

    /// The bytes of an answer, which keep their part of the budget until the last of them is sent.
    pub fn with(mut self, bytes: Vec<u8>) -> Bytes {
        if bytes.len() <= UNCOUNTED_BYTES {
            return Bytes::from(bytes);
        }
        self.shrink(bytes.len());
        Bytes::from_owner(Kept {
            bytes: bytes.into_boxed_slice(),
            _reserved: self,
        })
    }
}

/// Bytes and what keeps their part of the budget.
pub struct Kept<R> {
    /// The bytes.
    pub bytes: Box<[u8]>,
    /// Dropped with them.
    pub _reserved: R,
}

impl<R> AsRef<[u8]> for Kept<R> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_given_back_when_the_last_byte_is_gone_and_never_exceeded() {
        let memory = Memory::new(100 * UNIT);
        let mut held = memory.try_reserve(10 * UNIT).unwrap();
        held.grow(60 * UNIT, &memory).unwrap();
        assert!(held.grow(101 * UNIT, &memory).is_err());
        assert!(memory.try_reserve(41 * UNIT).is_err());
        assert!(memory.reserve(41 * UNIT).await.is_err());
        let bytes = held.with(vec![0; 20 * UNIT]);
        let part = bytes.slice(..1);
        let rest = memory.try_reserve(80 * UNIT).unwrap();
        drop(bytes);
        assert!(memory.try_reserve(1).is_err());
        drop(part);
        memory.try_reserve(20 * UNIT).unwrap();
        drop(rest);
        memory.try_reserve(100 * UNIT).unwrap();
        assert!(memory.try_reserve(usize::MAX).is_err());
    }
}
