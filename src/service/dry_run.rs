//! Trying a change: look, write the line, answer. Nothing is stored, and the Approver is not asked.

use std::sync::Arc;

use super::{Change, ChangeError, DryRun, Service, Unavailable, write_line};
use crate::ledger::{Answer, Proposal, Recorded, change_record};
use crate::operations_log::{Outcome, Record};
use crate::telemetry;

impl Service {
    /// What would become of a change that came now, by the rule of the ledger: it tells of this moment only.
    ///
    /// # Errors
    ///
    /// Those of the change, but for those that come of storing it.
    pub(super) async fn dry_run(self: &Arc<Self>, proposal: Proposal) -> Result<Change, ChangeError> {
        let (slot, deadline, place) = self.admit(self.dry_runs.are_full())?.into_parts();
        let service = Arc::clone(self);
        let task = tokio::spawn(telemetry::carried(async move {
            let verdict = async { Ok(service.ledger.verdict(&proposal, deadline).await) };
            let verdict = match place {
                Some(_) => service.dry_runs.take(deadline, verdict).await,
                None => Err(Unavailable::Overloaded),
            };
            let operation = &proposal.operation;
            let answer: Answer = match verdict {
                Ok(Ok(entry)) => Ok(Recorded {
                    id: operation.id,
                    balance: entry.balance_after,
                    version: entry.seq - 1,
                    replayed: false,
                }),
                Ok(Err(answer)) => answer,
                Err(unavailable) => Err(unavailable.into()),
            };
            let record = change_record(operation, &answer);
            let record = Record {
                dry_run: true,
                outcome: match record.outcome {
                    Outcome::Accepted => Outcome::WouldBeAccepted,
                    outcome => outcome,
                },
                ..record
            };
            write_line(slot, &record, deadline).await.map_err(Unavailable::from)?;
            answer.map(|recorded| Change {
                dry_run: Some(match proposal.approved && !recorded.replayed {
                    true => DryRun::NotApproved,
                    false => DryRun::Judged,
                }),
                ..Change::new(operation, recorded)
            })
        }));
        task.await.unwrap_or(Err(Unavailable::Internal.into()))
    }
}
