//! What a large mesh costs a node: `cargo xtask bench --only store`.
//!
//! A hundred thousand workloads and ten thousand services are pushed as a control plane pushes
//! them, and go the way of every push: the response is decoded, each resource read, remembered by
//! its digest and applied. Beside it stands a plain decode of the same messages in the same run.
//! Then a thousand pods a second are replaced for ten seconds, each in a push of its own, and the
//! time is taken from a push's arrival until readers see it, with the pauses in which the node
//! gathers what it puts in force. What follows in the node (going through the kernel's verdicts)
//! is not in it. The last line of each figure says whether its target is kept.

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use api::istio::workload::Address;
use arc_swap::ArcSwap;
use mesh::Snapshot;
use node::pause_after;
use prost::Message as _;
use tokio::runtime::Runtime;
use upstream::ads::OfflineClient;

#[path = "store/world.rs"]
mod world;

use world::World;

/// The proxy's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LARGE: World = World {
    workloads: 100_000,
    services: 10_000,
};
/// What loading may take.
const SECONDS: f64 = 2.0;
/// What a workload may occupy, services and everything else included.
const BYTES: f64 = 1200.0;
const PODS_A_SECOND: u32 = 1000;
/// After how long memory is looked at: mimalloc gives back what was free for a while.
const SETTLE: Duration = Duration::from_millis(500);
const CHURN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // What `cargo test` asks of a benchmark without a harness is that it does nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => run(&runtime),
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Time and memory of one piece of work.
struct Cost {
    seconds: f64,
    /// Of them on a processor: what does not depend on who else uses the machine.
    processor: f64,
    bytes: f64,
}

fn run(runtime: &Runtime) {
    println!("{} workloads, {} services", LARGE.workloads, LARGE.services);
    let empty = resident();
    let push = LARGE.first_push();
    println!("the push: {:.1} MB", mega(push.len()));
    // First: memory that another process has used before does not show when it is used again.
    let mut client = OfflineClient::new("cluster.local");
    let store = measured("the store", || {
        assert_eq!(runtime.block_on(apply(&mut client, &push)), 0);
    });
    assert_eq!(client.mesh.workloads().len(), LARGE.workloads as usize);
    let (messages, plain) = {
        let mut decoded = Vec::new();
        let plain = measured("a plain decode of the same messages", || {
            decoded = decode(&push)
        });
        (decoded.len(), plain)
    };
    println!("{messages} messages");
    let again = measured("the same push once more", || {
        assert_eq!(runtime.block_on(apply(&mut client, &push)), 0);
    });
    println!(
        "beside the plain decode: {:.2} of its processor time, {:.2} of its memory; once more: {:.2} of its time",
        store.processor / plain.processor,
        store.bytes / plain.bytes,
        again.processor / plain.processor
    );
    drop(push);
    churn(runtime, &mut client);
    // At the end nothing but the mesh is held, and the allocator had ten seconds to give back the
    // rest.
    let each = (resident() - empty) / f64::from(LARGE.workloads);
    drop(client);
    judge("seconds to load", store.seconds, SECONDS);
    judge("bytes per workload", each, BYTES);
}

/// Takes an encoded response; how many resources were refused.
async fn apply(client: &mut OfflineClient, push: &[u8]) -> usize {
    match DeltaDiscoveryResponse::decode(push) {
        Ok(response) => client.apply(response).await.unwrap_or(usize::MAX),
        Err(_) => usize::MAX,
    }
}

/// The messages as they are, with nothing made of them.
fn decode(push: &[u8]) -> Vec<Address> {
    let response = DeltaDiscoveryResponse::decode(push).unwrap_or_default();
    let contents = response
        .resources
        .iter()
        .filter_map(|each| each.resource.as_ref());
    contents
        .filter_map(|content| Address::decode(&*content.value).ok())
        .collect()
}

fn measured(what: &str, work: impl FnOnce()) -> Cost {
    let (began, ran, before) = (Instant::now(), processor(), resident());
    work();
    let (seconds, processor) = (began.elapsed().as_secs_f64(), processor() - ran);
    // The allocator gives back what was needed on the way when it is used again.
    thread::sleep(SETTLE);
    drop(vec![0_u8; 1 << 16]);
    let cost = Cost {
        seconds,
        processor,
        bytes: resident() - before,
    };
    println!(
        "{what:40} {:7.3} s ({:7.3} s on a processor) {:8.1} MB {:7.0} bytes per workload",
        cost.seconds,
        cost.processor,
        cost.bytes / 1e6,
        cost.bytes / f64::from(LARGE.workloads)
    );
    cost
}

/// Replaces pods, each at its time, and prints how long it took until readers saw it.
fn churn(runtime: &Runtime, client: &mut OfflineClient) {
    let count = PODS_A_SECOND * u32::try_from(CHURN.as_secs()).unwrap_or(u32::MAX);
    let pushes: Vec<_> = (0..count)
        .map(|at| LARGE.replacement(at).encode_to_vec())
        .collect();
    let published = ArcSwap::from_pointee(client.mesh.clone());
    let (before, began) = (resident(), Instant::now());
    let (mut waiting, mut waits) = (Vec::new(), Vec::new());
    let (mut applies, mut busy) = (Vec::new(), Duration::ZERO);
    let (mut next, mut due) = (0, began);
    while waits.len() < pushes.len() {
        let now = Instant::now();
        let arrives = |at: usize| began + Duration::from_secs(1) * index(at) / PODS_A_SECOND;
        if next < pushes.len() && arrives(next) <= now {
            assert_eq!(runtime.block_on(apply(client, &pushes[next])), 0);
            applies.push(now.elapsed());
            busy += now.elapsed();
            waiting.push(arrives(next));
            next += 1;
        } else if !waiting.is_empty() && due <= now {
            let previous_proxy = published.swap(Arc::new(client.mesh.clone()));
            let newest = IpAddr::from(LARGE.address_after(index(next - 1)));
            let seen: Arc<Snapshot> = published.load_full();
            assert!(seen.workload_by_address("network-1", newest).is_some());
            let visible = Instant::now();
            waits.extend(waiting.drain(..).map(|arrived| visible - arrived));
            drop(previous_proxy);
            busy += now.elapsed();
            due = Instant::now() + pause_after(now.elapsed());
        } else {
            thread::sleep(Duration::from_micros(100));
        }
    }
    println!(
        "{PODS_A_SECOND} pods replaced a second for {} s: {:.1} % of a processor, {:+.1} MB",
        CHURN.as_secs(),
        busy.as_secs_f64() * 100.0 / began.elapsed().as_secs_f64(),
        (resident() - before) / 1e6
    );
    drop((published, pushes));
    println!("  a push decoded and applied: {}", spread(applies));
    println!("  from its arrival until readers see it: {}", spread(waits));
}

fn spread(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let at = |share: usize| took.get((took.len().saturating_sub(1)) * share / 100);
    let [p50, p99, most] = [50, 99, 100].map(|share| at(share).copied().unwrap_or_default());
    format!("p50 {p50:.2?}, p99 {p99:.2?}, max {most:.2?}")
}

fn judge(what: &str, reached: f64, wanted: f64) {
    let verdict = if reached < wanted { "kept  " } else { "MISSED" };
    println!("{verdict}  {what}: {reached:.2}, under {wanted}");
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "a number to be read")]
fn mega(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// For how many seconds this thread has run: all of the work is on the main one.
fn processor() -> f64 {
    let statistics = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let ran = statistics.split(' ').next();
    let nanoseconds = ran.and_then(|ran| ran.parse::<f64>().ok());
    nanoseconds.unwrap_or_default() / 1e9
}

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or_default() * 4096.0
}
