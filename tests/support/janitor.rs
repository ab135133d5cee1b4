//! Ends the processes of a test program and removes its files, however the program ends: a shell waits for the end of a pipe
//! that this process alone holds open. Nothing in here runs at that moment, since nothing would if the program is killed.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// Takes the groups to kill from standard input, a line each, and the directory to remove as its argument. A file system that
/// a test has mounted there goes first, and PostgreSQL may still write a file while it ends.
const SCRIPT: &str = r#"
while read -r group; do groups="$groups -$group"; done
kill -s KILL -- $groups
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    umount -l "$1"/*
    rm -rf "$1" && exit
    sleep 0.5
done
"#;

pub struct Janitor {
    directory: PathBuf,
    shell: Child,
    /// The first process of the group: a group exists as long as one of its processes does.
    leader: Child,
}

impl Janitor {
    /// The janitor of this process.
    pub fn get() -> &'static Self {
        static JANITOR: OnceLock<Janitor> = OnceLock::new();
        JANITOR.get_or_init(|| {
            // Not in the build's directory or in TMPDIR: PostgreSQL's user need not be able to enter those.
            let directory = Path::new("/tmp").join(format!("balance-tests-{}", std::process::id()));
            // Of a process of this id that a power cut ended.
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir(&directory).unwrap();
            // Whatever the umask is.
            std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
            let janitor = Self {
                shell: shell(SCRIPT, &directory),
                leader: shell("read -r _", &directory),
                directory,
            };
            janitor.kill_group(janitor.group());
            janitor
        })
    }

    /// A directory that any user can enter; removed when the test program ends.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process group of what the tests start; killed when the test program ends.
    pub fn group(&self) -> i32 {
        i32::try_from(self.leader.id()).expect("a process id")
    }

    /// Kills this group too when the test program ends.
    pub fn kill_group(&self, group: i32) {
        let mut groups = self.shell.stdin.as_ref().expect("it is piped");
        writeln!(groups, "{group}").unwrap();
    }
}

/// In a group of its own, where Ctrl-C on the terminal does not reach it.
fn shell(script: &str, argument: &Path) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "janitor"]).arg(argument).current_dir("/");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.process_group(0).spawn().unwrap()
}
