//! Pipes are few, are held only while bytes are in transit, and never pass bytes of one connection
//! to another.

use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::pipes::{self, KEPT, Lease, MAX_PIPES};
use super::{ADAPTIVE, SPLICING, pair, relayed, relayed_between, stretch};

#[tokio::test]
async fn a_worker_has_so_many_and_no_more() {
    let mut all: Vec<Lease> = (0..MAX_PIPES).map(|_| Lease::take().unwrap()).collect();
    assert!(Lease::take().is_err());
    all.pop();
    let another = Lease::take();
    assert!(another.is_ok());
    drop((all, another));
    assert_eq!((pipes::leased(), pipes::kept()), (0, KEPT));
}

#[tokio::test]
async fn a_drained_pipe_is_used_again_and_one_with_bytes_is_not() {
    let (mut dialled, accepted) = pair().await;
    let (target, mut end) = pair().await;
    let mut lease = Lease::take().unwrap();
    dialled.write_all(b"left behind").await.unwrap();
    accepted.readable().await.unwrap();
    assert_eq!(lease.fill(&accepted).unwrap(), 11);
    drop(lease);
    assert_eq!((pipes::leased(), pipes::kept()), (0, 0));

    let mut lease = Lease::take().unwrap();
    dialled.write_all(b"passed on").await.unwrap();
    accepted.readable().await.unwrap();
    assert_eq!(lease.fill(&accepted).unwrap(), 9);
    assert_eq!(lease.drain(&target).unwrap(), 9);
    drop(lease);
    assert_eq!((pipes::leased(), pipes::kept()), (0, 1));
    let mut heard = [0; 9];
    end.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"passed on");
}

#[tokio::test]
async fn an_idle_connection_holds_none() {
    for strategy in [ADAPTIVE, SPLICING] {
        relayed(strategy, async |mut client, mut server| {
            let sent = stretch(0, 8 << 20);
            let mut heard = vec![0; sent.len()];
            let (wrote, read) =
                tokio::join!(client.write_all(&sent), server.read_exact(&mut heard));
            wrote.unwrap();
            read.unwrap();
            assert_eq!(heard, sent);
            // The relay notices that there are no more bytes.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            assert_eq!(pipes::leased(), 0, "{strategy:?}");
            assert!(pipes::kept() > 0, "{strategy:?}: nothing was spliced");
        })
        .await;
    }
}

/// The limit of open files applies to all threads of a process, so this test runs in a process of
/// its own.
#[test]
fn without_file_descriptors_bytes_are_copied() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "proxy::relay::tests::pipes::short_of_files"])
        .args(["--ignored", "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && told.contains("1 passed"), "{run:?}");
}

#[tokio::test]
#[ignore = "changes a limit of its process; the test above runs it"]
async fn short_of_files() {
    let ((client, accepted), (dialled, server)) = (pair().await, pair().await);
    let next = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let soft = u64::try_from(next).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let told = Lease::take().err().unwrap();
    assert_eq!(told.raw_os_error(), Some(libc::EMFILE));
    let streams = [client, accepted, dialled, server];
    let outcome = relayed_between(SPLICING, streams, async |mut client, mut server| {
        let sent = stretch(0, 8 << 20);
        let mut heard = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(client.write_all(&sent), server.read_exact(&mut heard));
        wrote.unwrap();
        read.unwrap();
        assert!(heard == sent);
    })
    .await;
    assert_eq!(outcome.ended.request, 8 << 20);
}
