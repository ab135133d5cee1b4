//! A statement of account: the history as people would rather look at it than read it, or as a spreadsheet takes it.
//!
//! Pure: what is shown comes in, text goes out. Everything a client has ever sent is escaped by the libraries that write
//! the page and the table.

mod curve;
mod page;
mod table;

pub use page::{StatementPage, render};
pub use table::{HEADER, rows};
