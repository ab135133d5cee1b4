//! What the log of the run before looks like: rotated, torn, cut short, or with a line that is not the change's own.

use std::fs;

use nix::sys::signal::Signal;

use super::{COMPLETE, Instance};
use crate::support::client::{ServiceClient, change};
use crate::support::world::NOON;

async fn deposits(client: &ServiceClient, count: usize) {
    for number in 0..count {
        let body = change(&format!("user-{number}"), 1, NOON);
        client.change(&body).await.expect(200);
    }
}

#[tokio::test]
async fn lines_in_files_rotated_just_before_are_not_written_again() {
    let instance = Instance::new().await;
    let (mut replica, client) = instance.start().await;
    let rotated = |name: &str| instance.scratch.0.join(format!("operations.log{name}"));
    deposits(&client, 5).await;
    fs::rename(&instance.log, rotated(".2")).unwrap();
    replica.signal(Signal::SIGHUP);
    replica.said("was opened anew").await;
    deposits(&client, 5).await;
    // A rename that the replica has not been told of.
    fs::rename(&instance.log, rotated("-20260131")).unwrap();
    deposits(&client, 5).await;
    instance.die_between(replica, &client, change("alice", 1, NOON)).await;
    let (replica, client) = instance.start().await;
    instance.expect_complete(1).await;
    // Nor is the recovered line, if all is renamed again.
    fs::rename(&instance.log, rotated(".1")).unwrap();
    deposits(&client, 1).await;
    instance.kill(replica).await;
    let (mut replica, _) = instance.start().await;
    replica.said(COMPLETE).await;
    instance.expect_complete(1).await;
    replica.stop().await;
}

#[tokio::test]
async fn lines_that_a_power_cut_took_from_the_end_come_back() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    deposits(&client, 50).await;
    instance.kill(replica).await;
    let text = fs::read_to_string(&instance.log).unwrap();
    let kept: Vec<&str> = text.split_inclusive('\n').take(20).collect();
    // The last of those that are left is torn.
    let kept = kept.concat();
    fs::write(&instance.log, &kept[..kept.len() - 30]).unwrap();
    let (replica, _) = instance.start().await;
    instance.expect_complete(31).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_last_line_that_lacks_only_its_line_break_is_a_line() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    deposits(&client, 2).await;
    instance.kill(replica).await;
    let text = fs::read_to_string(&instance.log).unwrap();
    fs::write(&instance.log, text.trim_end()).unwrap();
    let (mut replica, _) = instance.start().await;
    replica.said(COMPLETE).await;
    instance.expect_complete(0).await;
    replica.stop().await;
}

#[tokio::test]
async fn the_line_of_a_replay_is_not_the_line_of_the_change() {
    let instance = Instance::new().await;
    let (replica, client) = instance.start().await;
    let body = change("alice", 1, NOON);
    client.change_with_key(&body, "k").await.expect(200);
    client.change_with_key(&body, "k").await.expect(200);
    instance.kill(replica).await;
    let text = fs::read_to_string(&instance.log).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    assert!(first.contains("accepted") && second.contains("replayed"), "{text}");
    fs::write(&instance.log, second).unwrap();
    let (replica, _) = instance.start().await;
    instance.expect_complete(1).await;
    replica.stop().await;
}
