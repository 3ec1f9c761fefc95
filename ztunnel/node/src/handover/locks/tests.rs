use std::time::Duration;

use super::*;

const MOMENT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// Locks on a BPF file system of their own, as two processes would have them.
struct Place {
    directory: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Place {
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

impl Drop for Place {
    fn drop(&mut self) {
        bpf::Kernel::remove_pins(&self.directory).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn one_is_in_charge_and_one_is_next() {
    let place = Place::new();
    let (one, other) = (place.process(), place.process());
    let (charge, standby) = one.take().unwrap().unwrap();
    assert!(other.take().unwrap().is_none());
    assert!(other.take_over().unwrap().is_none());
    // As long as the first one is not ready, nobody asks it.
    let early = tokio::time::timeout(MOMENT, other.become_standby(StandbyPorts::Own)).await;
    assert!(early.is_err());
    drop(standby);
    let standby = other.become_standby(StandbyPorts::Wanted).await.unwrap();
    assert!(one.wants_ports());
    let inherited = tokio::time::timeout(MOMENT, other.wait_for_active_lock()).await;
    assert!(inherited.is_err());
    drop(charge);
    let inherited = tokio::time::timeout(PATIENCE, other.wait_for_active_lock()).await;
    let charge = inherited.unwrap().unwrap();
    let served = tokio::time::timeout(MOMENT, one.served()).await;
    assert!(served.is_err(), "the heir is not ready");
    drop(standby);
    let served = tokio::time::timeout(PATIENCE, one.served()).await;
    let served = served.unwrap().unwrap();
    assert!(one.take_over().unwrap().is_none());
    // The heir has died after all.
    drop(charge);
    assert!(one.take_over().unwrap().is_some());
    drop(served);
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    assert!(!one.wants_ports());
    drop(standby);
}

#[tokio::test]
#[ignore = "needs root"]
async fn who_is_in_charge_is_asked_by_the_living_only() {
    let place = Place::new();
    let (one, other) = (place.process(), place.process());
    let (_charge, standby) = one.take().unwrap().unwrap();
    drop(standby);
    let asked = one.watch().unwrap();
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    other.ask(&standby).unwrap();
    drop(standby);
    let dead = tokio::time::timeout(MOMENT, asked.asked()).await;
    assert!(dead.is_err(), "asked by nobody");
    let standby = other.become_standby(StandbyPorts::Own).await.unwrap();
    other.ask(&standby).unwrap();
    let living = tokio::time::timeout(PATIENCE, asked.asked()).await;
    assert!(living.is_ok(), "nobody was heard");
}
