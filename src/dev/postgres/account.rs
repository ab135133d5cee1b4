//! Whom PostgreSQL runs as. It refuses to run as root, so root hands it to another user; everybody else runs it himself.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, getegid, geteuid};

use super::error::{PostgresError, failed_to};

/// A user that is not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// For messages.
    pub(super) name: String,
    /// True if this process is root and its children must change to this user.
    switch: bool,
}

impl Account {
    /// The user of this process or, for root, the owner of the data if there is any, else `postgres`, else `nobody`.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NobodyToRunAs`] for root on a system with none of these.
    pub(super) fn choose(owner_of_data: Option<u32>) -> Result<Self, PostgresError> {
        if !is_root() {
            let uid = geteuid();
            return Ok(Self {
                uid: uid.as_raw(),
                gid: getegid().as_raw(),
                name: name_of(uid.as_raw()),
                switch: false,
            });
        }
        let owner = owner_of_data.and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
        let named = || {
            ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| User::from_name(name).ok().flatten())
        };
        owner
            .filter(|user| !user.uid.is_root())
            .or_else(named)
            .map(|user| Self {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                name: user.name,
                switch: true,
            })
            .ok_or(PostgresError::NobodyToRunAs)
    }

    /// Makes `command` run as this user, in a directory that it can surely enter.
    ///
    /// The user's supplementary groups are not taken on, and root's are given up: std calls `setgroups` with none.
    pub(super) fn run(&self, command: &mut Command) {
        command.current_dir("/");
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// Gives a path that root has just made to this user.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Io`] if the operating system or the file system refuses.
    pub(super) fn give(&self, path: &Path) -> Result<(), PostgresError> {
        if !self.switch {
            return Ok(());
        }
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).map_err(failed_to("change the owner of", path))
    }

    /// Whether this user can enter a directory. The kernel is asked, by entering it: modes, ACLs, mounts and security
    /// modules all have a say.
    ///
    /// # Errors
    ///
    /// What starting the child said that tries it.
    pub(super) async fn can_enter(&self, directory: &Path) -> io::Result<bool> {
        if !self.switch {
            return Ok(true);
        }
        let mut enter = Command::new("/bin/sh");
        enter.args(["-c", "cd -- \"$1\"", "sh"]).arg(directory);
        enter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.run(&mut enter);
        Ok(tokio::process::Command::from(enter).status().await?.success())
    }
}

/// Whether this process is root.
pub(super) fn is_root() -> bool {
    geteuid().is_root()
}

/// A user's name for messages, or the number of one without a name.
pub(super) fn name_of(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
