//! A statement of account: the history as people would rather look at it than read it, or as a spreadsheet takes it.
//!
//! Everything a client has ever sent is escaped by the libraries that write the page and the table.

mod answer;
mod asked;
mod curve;
mod disposition;
mod figures;
mod fitting;
mod page;
mod table;

pub use answer::HistoryAnswer;
pub use asked::Asked;
pub use fitting::MAX_PAGE_BYTES;

#[cfg(test)]
mod tests;
