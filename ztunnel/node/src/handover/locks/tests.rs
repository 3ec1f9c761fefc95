use std::time::Duration;

use super::*;

const BRIEF: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// A BPF file system with the locks of two processes.
struct Pins {
    directory: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Pins {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        Self {
            directory: temporary.path().join("pins"),
            _temporary: temporary,
        }
    }

    fn process(&self) -> Handover {
        Handover::open(&self.directory).unwrap()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        bpf::Kernel::remove_pins(&self.directory).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn one_process_is_active_and_one_is_standby() {
    let pins = Pins::new();
    let (one, other) = (pins.process(), pins.process());
    let (active, standby) = one.try_acquire().unwrap().unwrap();
    assert!(other.try_acquire().unwrap().is_none());
    assert!(other.try_acquire_active().unwrap().is_none());
    // While the first process is not ready, no process can request a handover.
    let early = tokio::time::timeout(BRIEF, other.become_standby(StandbyPorts::Own)).await;
    assert!(early.is_err());
    drop(standby);
    let standby = other.become_standby(StandbyPorts::Wanted).await.unwrap();
    assert!(one.standby_wants_ports());
    let acquired = tokio::time::timeout(BRIEF, other.acquire_active()).await;
    assert!(acquired.is_err());
    drop(active);
    let acquired = tokio::time::timeout(PATIENCE, other.acquire_active()).await;
    let active = acquired.unwrap().unwrap();
    let released = tokio::time::timeout(BRIEF, one.standby_released()).await;
    assert!(released.is_err(), "the standby process is not ready");
    drop(standby);
    let released = tokio::time::timeout(PATIENCE, one.standby_released()).await;
    let released = released.unwrap().unwrap();
    assert!(one.try_acquire_active().unwrap().is_none());
    // The standby process has died after all.
    drop(active);
    assert!(one.try_acquire_active().unwrap().is_some());
    drop(released);
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    assert!(!one.standby_wants_ports());
    drop(standby);
}

#[tokio::test]
#[ignore = "needs root"]
async fn only_a_living_standby_process_can_request_a_handover() {
    let pins = Pins::new();
    let (one, other) = (pins.process(), pins.process());
    let (_active, standby) = one.try_acquire().unwrap().unwrap();
    drop(standby);
    let requests = one.watch_requests().unwrap();
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    other.request_handover(&standby).unwrap();
    drop(standby);
    let dead = tokio::time::timeout(BRIEF, requests.next()).await;
    assert!(dead.is_err(), "a dead process has requested the handover");
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    other.request_handover(&standby).unwrap();
    let living = tokio::time::timeout(PATIENCE, requests.next()).await;
    assert!(living.is_ok(), "the request was lost");
}
