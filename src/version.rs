//! Which version of the program this is.

/// The package's version and, unless it was built from a source archive, the commit: `0.1.0 (1a2b3c4d5e6f)`.
pub const VERSION: &str = env!("BALANCE_VERSION");

/// The commit that was built, 12 digits of it, or `unknown`.
pub const COMMIT: &str = env!("BALANCE_COMMIT");
