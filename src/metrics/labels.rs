//! The closed lists that labels are taken from.

/// A closed list of a label's values.
pub(super) trait Label: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// As it stands in the text.
    fn label(self) -> &'static str;
}

/// Why a request was refused because of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// It held none.
    NoToken,
    /// It held one that is not in the list.
    UnknownToken,
    /// It held more than one header.
    RepeatedHeader,
    /// Its token does not allow what was asked for.
    InsufficientScope,
}

impl Label for Unauthorized {
    const ALL: &'static [Self] = &[
        Self::NoToken,
        Self::UnknownToken,
        Self::RepeatedHeader,
        Self::InsufficientScope,
    ];

    fn label(self) -> &'static str {
        match self {
            Unauthorized::NoToken => "no_token",
            Unauthorized::UnknownToken => "unknown_token",
            Unauthorized::RepeatedHeader => "repeated_header",
            Unauthorized::InsufficientScope => "insufficient_scope",
        }
    }
}

/// What a batch does for its operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// It reads balances.
    Read,
    /// It commits changes.
    Commit,
}

impl Label for BatchKind {
    const ALL: &'static [Self] = &[Self::Read, Self::Commit];

    fn label(self) -> &'static str {
        match self {
            BatchKind::Read => "read",
            BatchKind::Commit => "commit",
        }
    }
}

/// The purpose of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Reads balances.
    ReadBalances,
    /// Reads how much could be withdrawn.
    ReadAvailable,
    /// Reads balances as they were known at an earlier moment.
    ReadKnownBalance,
    /// Reads users, with what their changes need of the timelines.
    ReadUsers,
    /// Looks for changes whose commit gave no result.
    FindStored,
    /// Commits changes.
    Commit,
    /// Reads a page of a history.
    ReadHistory,
    /// Reads a page of a history as it was known at an earlier moment.
    ReadKnownHistory,
    /// Looks for changes whose lines an earlier run did not write.
    FindUnlogged,
    /// Checks schema and rights for `/readyz`.
    CheckReadiness,
}

impl Label for Statement {
    const ALL: &'static [Self] = &[
        Self::ReadBalances,
        Self::ReadAvailable,
        Self::ReadKnownBalance,
        Self::ReadUsers,
        Self::FindStored,
        Self::Commit,
        Self::ReadHistory,
        Self::ReadKnownHistory,
        Self::FindUnlogged,
        Self::CheckReadiness,
    ];

    fn label(self) -> &'static str {
        match self {
            Statement::ReadBalances => "read_balances",
            Statement::ReadAvailable => "read_available",
            Statement::ReadKnownBalance => "read_known_balance",
            Statement::ReadUsers => "read_users",
            Statement::FindStored => "find_stored",
            Statement::Commit => "commit",
            Statement::ReadHistory => "read_history",
            Statement::ReadKnownHistory => "read_known_history",
            Statement::FindUnlogged => "find_unlogged",
            Statement::CheckReadiness => "check_readiness",
        }
    }
}

/// Why changes are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// Another replica was faster.
    Conflict,
    /// The result of the commit was lost, and is looked for.
    ResultLost,
    /// The statement failed and nothing is stored; it may have been due to another user's changes.
    NotStored,
    /// What they rest on could not be read.
    NotRead,
}

impl Label for RetryReason {
    const ALL: &'static [Self] = &[Self::Conflict, Self::ResultLost, Self::NotStored, Self::NotRead];

    fn label(self) -> &'static str {
        match self {
            RetryReason::Conflict => "conflict",
            RetryReason::ResultLost => "result_lost",
            RetryReason::NotStored => "not_stored",
            RetryReason::NotRead => "not_read",
        }
    }
}

/// What came of asking the Approver about one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictLabel {
    /// The change may be.
    Approved,
    /// The change may not be.
    Denied,
    /// There was no verdict.
    None,
}

impl Label for VerdictLabel {
    const ALL: &'static [Self] = &[Self::Approved, Self::Denied, Self::None];

    fn label(self) -> &'static str {
        match self {
            VerdictLabel::Approved => "approved",
            VerdictLabel::Denied => "denied",
            VerdictLabel::None => "none",
        }
    }
}

/// Where operations wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Balances that are asked for, and what is available, until they are answered.
    Balances,
    /// Changes, from when they join their lane until they are answered.
    Changes,
    /// Changes that are only tried, until it is known what would come of them.
    DryRuns,
    /// Balances and pages of histories as they were known at an earlier moment, until they are read.
    Known,
    /// Pages of histories, until they are read.
    History,
    /// Places for lines in the operations log, from when an operation begins until the writer takes up its line.
    OperationsLog,
}

impl Label for Queue {
    const ALL: &'static [Self] = &[
        Self::Balances,
        Self::Changes,
        Self::DryRuns,
        Self::Known,
        Self::History,
        Self::OperationsLog,
    ];

    fn label(self) -> &'static str {
        match self {
            Queue::Balances => "balances",
            Queue::Changes => "changes",
            Queue::DryRuns => "dry_runs",
            Queue::Known => "known",
            Queue::History => "history",
            Queue::OperationsLog => "operations_log",
        }
    }
}

/// An error, as the label `error_type` tells it.
pub trait ErrorType {
    /// One of a closed list; never empty, which stands for success.
    fn error_type(&self) -> &'static str;
}

/// Statuses are the Approver's to invent; labels are not.
pub(super) fn approver_status(status: Option<u16>) -> &'static str {
    match status {
        None => "",
        Some(200) => "200",
        Some(403) => "403",
        Some(429) => "429",
        Some(500) => "500",
        Some(502) => "502",
        Some(503) => "503",
        Some(504) => "504",
        Some(200..300) => "2xx",
        Some(300..400) => "3xx",
        Some(400..500) => "4xx",
        Some(500..600) => "5xx",
        Some(_) => "_OTHER",
    }
}
