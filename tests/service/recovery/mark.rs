//! The mark beside the log, on a disk that is full and where it cannot be read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

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
async fn a_mark_that_cannot_be_read_is_not_replaced_by_a_later_one() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    client.change(&change("alice", 100, NOON)).await.expect(200);
    replica.stop().await;
    // Nobody can read it, not even the superuser.
    symlink(mark(&instance), mark(&instance)).unwrap();
    let (mut replica, _) = instance.start().await;
    replica.said("cannot be read and is left as it is").await;
    replica.stop().await;
    assert!(fs::symlink_metadata(mark(&instance)).unwrap().is_symlink());
}
