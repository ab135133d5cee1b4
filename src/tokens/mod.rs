//! Bearer tokens: who may ask for what.
//!
//! A file lists them, one a line: a name, the SHA-256 of the token and what it allows. The tokens themselves are nowhere.
//! The file is read at the start and whenever it is asked for again; a request is judged by one list as a whole, the old one
//! or the new one.
//!
//! - `list`: the file's text.
//! - `table`: finding the token that is presented, in a time that tells nothing of those in the list.

mod list;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use sha2::{Digest, Sha256};

use crate::domain::CallerName;
use crate::small_file;
use table::Table;

pub use list::{InvalidList, MAX_TOKENS};

/// The SHA-256 of a token.
type TokenDigest = [u8; 32];

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Reading balances and histories.
    Read,
    /// Changing balances.
    Write,
}

impl Scope {
    /// All of them, as they are written in the file and in answers.
    pub const NAMES: [(&str, Scope); 2] = [("read", Scope::Read), ("write", Scope::Write)];

    /// As it is written in the file and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Write => "write",
        }
    }
}

/// What a token allows, each scope by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    read: bool,
    write: bool,
}

impl Scopes {
    /// Whether a scope is among them.
    pub fn include(self, scope: Scope) -> bool {
        match scope {
            Scope::Read => self.read,
            Scope::Write => self.write,
        }
    }

    /// Reads scopes joined by commas, each given once; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut scopes = Self::default();
        for name in text.split(',') {
            let (_, scope) = Scope::NAMES.into_iter().find(|(known, _)| *known == name)?;
            let given = match scope {
                Scope::Read => &mut scopes.read,
                Scope::Write => &mut scopes.write,
            };
            if std::mem::replace(given, true) {
                return None;
            }
        }
        Some(scopes)
    }
}

/// Whom a token stands for, and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whom.
    pub caller: CallerName,
    /// What.
    pub scopes: Scopes,
}

/// Why tokens cannot be taken from a file. The message is one line that shows nothing of what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("{path:?}: {source}; give a file with one token a line: name, SHA-256 in hex, scopes")]
    Unreadable {
        /// As it was given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no list of tokens.
    #[error("{path:?}: {reason}")]
    Invalid {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        reason: InvalidList,
    },
}

/// The tokens of a file, as they were when it was last read well.
pub struct Tokens {
    path: PathBuf,
    table: RwLock<Table>,
}

impl Tokens {
    /// Reads the file. Blocks.
    ///
    /// # Errors
    ///
    /// [`TokensError`] if it cannot be read, or any line of it is wrong.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        Ok(Self {
            path: path.to_owned(),
            table: RwLock::new(read(path)?),
        })
    }

    /// Reads the file again, and tells how many tokens there are now. Blocks.
    ///
    /// # Errors
    ///
    /// [`TokensError`] as at the start; then the tokens stay as they are.
    pub fn reload(&self) -> Result<usize, TokensError> {
        let table = read(&self.path)?;
        let count = table.len();
        // The old one is dropped when the lock is free again.
        let _old = std::mem::replace(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner), table);
        Ok(count)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whom the token stands for, if it is one of the list.
    pub fn find(&self, token: &[u8]) -> Option<Grant> {
        let digest = digest(token);
        // Nothing panics while it holds the lock, which writers take only to put the next list into its place.
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.find(&digest).cloned()
    }
}

/// The SHA-256 of a token in hex, as it stands in the file.
pub fn digest_in_hex(token: &[u8]) -> String {
    in_hex(&digest(token))
}

/// Two digits a byte.
pub fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(token: &[u8]) -> TokenDigest {
    Sha256::digest(token).into()
}

fn read(path: &Path) -> Result<Table, TokensError> {
    // Text that is not UTF-8 is no error yet: the line that holds it is named.
    let text = small_file::read(path).map_err(|source| TokensError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let listed = list::parse(&text).map_err(|reason| TokensError::Invalid {
        path: path.to_owned(),
        reason,
    })?;
    Ok(Table::new(listed))
}
