//! The log as its users meet it: on real files, and on a disk that fails at any byte.

mod any_failure;
pub(crate) mod disk;
mod lock;
pub(super) mod real_files;
mod trail;

use std::path::Path;

use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::config::SyncPolicy;
use crate::domain::{Context, OperationId, UserId};

fn config(path: &Path, sync: SyncPolicy, instance: &str) -> OperationsLogConfig {
    OperationsLogConfig {
        path: path.to_owned(),
        sync,
        instance: instance.to_owned(),
        operations_at_once: 14_096,
    }
}

/// What one test operation is, and what its line needs to borrow.
struct Told {
    id: OperationId,
    user_id: UserId,
    context: Context,
    outcome: Outcome,
}

impl Told {
    fn new(number: u128, committed: bool) -> Self {
        let length = usize::try_from(number % 97).unwrap();
        Self {
            id: OperationId(Uuid::from_u128(number)),
            user_id: UserId::new("user").unwrap(),
            context: Context::new("x".repeat(length)).unwrap(),
            outcome: match committed {
                true => Outcome::Accepted,
                false => Outcome::Problem("insufficient_funds"),
            },
        }
    }

    fn record(&self) -> Record<'_> {
        Record {
            operation_id: Some(self.id),
            balance_change: Some(1),
            context: Some(&self.context),
            ..Record::new(OperationName::ChangeBalance, self.outcome, &self.user_id)
        }
    }
}

async fn write(log: &OperationsLog, number: u128, committed: bool) -> Result<(), LogUnavailable> {
    log.reserve()?.write(&Told::new(number, committed).record()).await
}

async fn write_recovered(slot: Slot, told: &Told) -> Result<(), LogUnavailable> {
    let mut lines = Lines::now();
    lines.push_recovered(slot, &told.record());
    lines.write().await.line(0)
}

/// The number of the operation that a line tells of, and whether the line is marked as recovered.
fn told(line: &str) -> Option<(u128, bool)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let id = Uuid::parse_str(line["operationId"].as_str()?).ok()?;
    Some((id.as_u128(), line.get("recovered") == Some(&Value::Bool(true))))
}
