//! Measures the cost of a byte and of a message: directly, copied and spliced.
//! [`Thresholds::MEASURED`](super::Thresholds::MEASURED) is based on the results. Run it alone on
//! an idle machine with at least two cores:
//! `cargo test --lib proxy::relay::tests::cost -- --ignored --nocapture`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::unistd::Pid;

use super::super::tcp::between;
use super::{ADAPTIVE, COPYING, CopyStrategy, SPLICING};
use telemetry::Series;

const ROUNDS: usize = 9;

/// The cores on which the relay and the ends run.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Wherever the scheduler puts them.
    Anywhere,
    /// The relay on the first core, both ends on the second.
    Apart,
}

impl Place {
    /// Pins the calling thread, and the threads that it starts, to a core.
    fn pin(self, core: usize) {
        let mut cores = CpuSet::new();
        match self {
            Self::Anywhere => [0, 1].into_iter().for_each(|core| cores.set(core).unwrap()),
            Self::Apart => cores.set(core).unwrap(),
        }
        sched_setaffinity(Pid::from_raw(0), &cores).unwrap();
    }
}

/// The workload of the ends.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// The client writes this many bytes in pieces of one size.
    Bulk { bytes: usize, piece: usize },
    /// A message is sent and returned this many times.
    Exchange { times: usize, size: usize },
}

/// What connects the ends.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nothing,
    Copying,
    Splicing,
    Adaptive,
}

impl Between {
    const ALL: [Self; 4] = [Self::Nothing, Self::Copying, Self::Splicing, Self::Adaptive];

    fn strategy(self) -> Option<CopyStrategy> {
        match self {
            Self::Nothing => None,
            Self::Copying => Some(COPYING),
            Self::Splicing => Some(SPLICING),
            Self::Adaptive => Some(ADAPTIVE),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: f64,
    relay: f64,
    everybody: f64,
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn cpu(who: UsageWho) -> f64 {
    let usage: Usage = getrusage(who).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn serve(listener: &TcpListener, work: Work) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    match work {
        Work::Bulk { bytes, .. } => {
            let mut buffer = vec![0; 256 << 10];
            let mut total = 0;
            while total < bytes {
                total += stream.read(&mut buffer).unwrap();
            }
            stream.write_all(b"!").unwrap();
        }
        Work::Exchange { times, size } => {
            let mut buffer = vec![0; size];
            for _ in 0..times {
                stream.read_exact(&mut buffer).unwrap();
                stream.write_all(&buffer).unwrap();
            }
        }
    }
    drop(stream.read(&mut [0]));
}

fn call(mut stream: &TcpStream, work: Work) {
    match work {
        Work::Bulk { bytes, piece } => {
            let buffer = vec![7; piece];
            for _ in 0..bytes / piece {
                stream.write_all(&buffer).unwrap();
            }
            stream.write_all(&buffer[..bytes % piece]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        Work::Exchange { times, size } => {
            let mut buffer = vec![7; size];
            for _ in 0..times {
                stream.write_all(&buffer).unwrap();
                stream.read_exact(&mut buffer).unwrap();
            }
        }
    }
}

/// Relays one connection on a thread of its own; returns the thread's CPU seconds.
fn relay(listener: TcpListener, to: SocketAddr, strategy: CopyStrategy, place: Place) -> f64 {
    place.pin(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (client, _) = listener.accept().await.unwrap();
        let server = tokio::net::TcpStream::connect(to).await.unwrap();
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let before = cpu(UsageWho::RUSAGE_THREAD);
        let ended = between(
            client,
            server,
            strategy,
            &Series::default(),
            std::future::pending(),
        )
        .await;
        assert!(ended.broken.is_none(), "{ended:?}");
        cpu(UsageWho::RUSAGE_THREAD) - before
    })
}

fn measure(work: Work, between: Between, place: Place) -> Sample {
    place.pin(1);
    let (listener, server) = listen();
    thread::scope(|scope| {
        scope.spawn(move || serve(&listener, work));
        let (relaying, to) = match between.strategy() {
            None => (None, server),
            Some(strategy) => {
                let (listener, address) = listen();
                (
                    Some(scope.spawn(move || relay(listener, server, strategy, place))),
                    address,
                )
            }
        };
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        let (began, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
        call(&stream, work);
        let (seconds, everybody) = (
            began.elapsed().as_secs_f64(),
            cpu(UsageWho::RUSAGE_SELF) - before,
        );
        drop(stream);
        Sample {
            seconds,
            relay: relaying.map_or(0.0, |relay| relay.join().unwrap()),
            everybody,
        }
    })
}

/// The median, the minimum and the maximum.
fn spread(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> String {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    format!(
        "{:8.3} [{:.3}, {:.3}]",
        values[values.len() / 2],
        values[0],
        values[values.len() - 1]
    )
}

fn row(name: &str, work: Work, place: Place) {
    let mut samples: [Vec<Sample>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (samples, between) in samples.iter_mut().zip(Between::ALL) {
            samples.push(measure(work, between, place));
        }
    }
    for (samples, between) in samples.iter().zip(Between::ALL) {
        let (unit, per) = match work {
            Work::Bulk { bytes, .. } => ("GB", bytes as f64 / 1e9),
            Work::Exchange { times, .. } => ("100k", times as f64 / 1e5),
        };
        println!(
            "{name:16} {:8} {:9} {unit}/s {}  relay CPU s/{unit} {}  all {}",
            format!("{place:?}"),
            format!("{between:?}"),
            spread(samples, |sample| per / sample.seconds),
            spread(samples, |sample| sample.relay / per),
            spread(samples, |sample| sample.everybody / per),
        );
    }
}

#[test]
#[ignore = "a measurement: takes minutes and wants a quiet machine"]
fn copying_and_splicing() {
    for place in [Place::Apart, Place::Anywhere] {
        for piece in [256 << 10, 16 << 10, 1448] {
            let bytes = 1 << 29;
            let work = Work::Bulk { bytes, piece };
            row(&format!("bulk {piece}"), work, place);
        }
        for size in [1, 16 << 10, 32 << 10, 64 << 10, 128 << 10] {
            let times = if size < 32 << 10 { 10_000 } else { 4_000 };
            let work = Work::Exchange { times, size };
            row(&format!("exchange {size}"), work, place);
        }
    }
}
