//! A small file system that can be filled.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::replica::Scratch;

/// A file system in memory, gone when dropped.
pub struct SmallDisk(Scratch);

impl SmallDisk {
    /// Mounts one, which not everybody may: the error says why not.
    pub fn mount(mebibytes: u32) -> Result<Self, String> {
        let directory = Scratch::new();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0755"), "tmpfs"])
            .arg(&directory.0);
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(directory)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0.0
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Leaves no free block.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        for piece in [1 << 16, 512] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
    }

    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a replica may still have its log open.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .stderr(Stdio::null())
            .status();
    }
}
