//! The mark beside the log, on a disk that is full and where it cannot be read.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Instance, RECOVERED};
use crate::support::client::change;
use crate::support::disk::SmallDisk;
use crate::support::world::NOON;

fn mark(instance: &Instance) -> PathBuf {
    instance.log.with_extension("log.recovering")
}

#[tokio::test]
async fn a_mark_that_finds_no_room_is_written_before_the_lines_that_make_the_log_look_complete() {
    let disk = match SmallDisk::mount(1) {
        Ok(disk) => disk,
        Err(reason) => return println!("skipped: a tmpfs cannot be mounted here: {reason}"),
    };
    let mut instance = Instance::new().await;
    instance.log = disk.path().join("operations.log");
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    disk.fill();
    let (mut replica, _) = instance.start().await;
    replica.said(".recovering cannot be written").await;
    replica.said("it is not known yet").await;
    assert!(!mark(&instance).exists());
    disk.free();
    replica.said(RECOVERED).await;
    assert!(mark(&instance).exists());
    instance.expect_complete(1).await;
    replica.stop().await;
}

#[tokio::test]
async fn only_a_small_regular_file_is_read_as_the_mark_and_anything_else_is_reported_and_left_alone() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    replica.stop().await;
    let mark = mark(&instance);
    let elsewhere = instance.scratch.0.join("elsewhere");
    fs::write(&elsewhere, "2026-01-31T12:00:00.000000Z\n").unwrap();

    let make_fifo = || mkfifo(&mark, Mode::S_IRWXU).unwrap();
    let link_to = |target: &Path| symlink(target, &mark).unwrap();
    let kinds: [(&str, &dyn Fn()); 7] = [
        ("a FIFO", &make_fifo),
        ("a link to a device", &|| link_to(Path::new("/dev/zero"))),
        ("a link to a file", &|| link_to(&elsewhere)),
        // Nobody can read it, not even the superuser.
        ("a link to itself", &|| link_to(&mark)),
        ("a directory", &|| fs::create_dir(&mark).unwrap()),
        ("a socket", &|| drop(UnixListener::bind(&mark).unwrap())),
        ("a large file", &|| {
            fs::File::create(&mark).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for (kind, make) in kinds {
        make();
        let before = fs::symlink_metadata(&mark).unwrap();
        let (mut replica, client) = instance.start().await;
        replica.said("cannot be read and is left as it is").await;
        client.change(&change("alice", 1, NOON)).await.expect(200);
        replica.stop().await;
        let after = fs::symlink_metadata(&mark).unwrap();
        assert_eq!((after.ino(), after.len()), (before.ino(), before.len()), "{kind}");
        let removed = if after.is_dir() {
            fs::remove_dir(&mark)
        } else {
            fs::remove_file(&mark)
        };
        removed.unwrap();
    }
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "2026-01-31T12:00:00.000000Z\n");
}
