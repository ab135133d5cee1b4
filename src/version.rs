//! Which version of the program this is.

/// The package's version and, unless it was built from a source archive, the commit and its day: `0.1.0 (1a2b3c4d5e6f
/// 2026-11-26)`.
pub const VERSION: &str = env!("BALANCE_VERSION");

/// The commit that was built, 12 digits of it, or `unknown`.
pub const COMMIT: &str = env!("BALANCE_COMMIT");
/// The day of the commit, as `2026-11-26`; empty if it is not known.
pub const DATE: &str = env!("BALANCE_DATE");
