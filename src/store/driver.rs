//! The task that reads a connection to PostgreSQL, and hears its warnings.
//!
//! PostgreSQL answers a commit as done when its wait for a synchronous standby is cancelled. It only warns that the standby
//! may lack the change. Such a statement is therefore in doubt.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Connection, Socket};

use super::encryption::Stream;

/// Drives a connection until it ends or this is dropped.
pub(super) struct Driver {
    task: AbortHandle,
    has_warned: Arc<AtomicBool>,
}

impl Driver {
    pub(super) fn start(mut connection: Connection<Socket, Stream>) -> Self {
        let has_warned = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&has_warned);
        let driving = async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    // It comes before the answer of the statement. Its text may be translated, and its code is that of any warning.
                    Some(Ok(AsyncMessage::Notice(notice))) if notice.routine() == Some("SyncRepWaitForLSN") => {
                        tracing::warn!(message = notice.message(), "PostgreSQL warns of a commit");
                        heard.store(true, Ordering::Release);
                    }
                    Some(Ok(_)) => {}
                    // The statement under way, or the next one, finds the connection closed.
                    Some(Err(_)) | None => break,
                }
            }
        };
        Self {
            task: tokio::spawn(driving).abort_handle(),
            has_warned,
        }
    }

    /// Whether PostgreSQL has warned since this was asked last.
    pub(super) fn take_warning(&self) -> bool {
        self.has_warned.swap(false, Ordering::Acquire)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
