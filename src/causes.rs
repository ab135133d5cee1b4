//! An error with all its causes, for operators; clients see none of it.

use std::error::Error;

/// The error's message, then those of its sources, each after a colon.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
