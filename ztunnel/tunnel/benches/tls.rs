//! CPU time of the TLS record layer, compared with tokio-rustls: `cargo xtask bench --only tls`.
//!
//! Both variants run in the same process over TCP on loopback, with the same cipher suite, the same
//! certificates and the same reads and writes; plain TCP is measured as a reference. Client and
//! server have a thread each. In every round each variant is measured once for each row, and a
//! different variant goes first. The handshake is not part of the measurement; the kernel's work
//! for the sockets is.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

#[path = "tls/sessions.rs"]
mod sessions;
#[path = "tls/work.rs"]
mod work;

use sessions::{Endpoints, Variant};
use work::Work;

/// The allocator of the proxy.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;

fn main() -> ExitCode {
    // `cargo test` runs benchmarks without `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the TLS benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The samples of one row, by variant and round.
#[derive(Default)]
struct Row {
    ours: Vec<f64>,
    tokio_rustls: Vec<f64>,
    plain: Vec<f64>,
}

impl Row {
    fn samples(&mut self, variant: Variant) -> &mut Vec<f64> {
        match variant {
            Variant::Ours => &mut self.ours,
            Variant::TokioRustls => &mut self.tokio_rustls,
            Variant::Plain => &mut self.plain,
        }
    }
}

fn run() -> Result<()> {
    let endpoints = Endpoints::new()?;
    let suite = check_cipher_suites(&endpoints)?;
    let mut rows = Work::ALL.map(|work| (work, Row::default()));
    for round in 0..ROUNDS {
        for (work, row) in &mut rows {
            eprintln!("round {} of {ROUNDS}: {work}", round + 1);
            for turn in 0..Variant::ALL.len() {
                let variant = Variant::ALL[(round + turn) % Variant::ALL.len()];
                let sample = work::measure(*work, variant, &endpoints)
                    .with_context(|| format!("{work} with {variant}"))?;
                row.samples(variant).push(sample);
            }
        }
    }
    println!("TLS over TCP on loopback, {suite}; median of {ROUNDS} rounds (minimum to maximum)");
    println!("CPU time of client and server together; ratio: tunnel::tls to tokio-rustls");
    println!(
        "{:34} {:7} {:25} {:25} {:23} plain TCP",
        "", "unit", "tunnel::tls", "tokio-rustls", "ratio"
    );
    for (work, row) in rows {
        let pairs = row.ours.iter().zip(&row.tokio_rustls);
        let ratios = pairs.map(|(ours, theirs)| ours / theirs).collect();
        println!(
            "{:34} {:7} {:25} {:25} {:23} {}",
            work.to_string(),
            work.unit(),
            spread(row.ours),
            spread(row.tokio_rustls),
            spread(ratios),
            spread(row.plain),
        );
    }
    Ok(())
}

/// The cipher suite of both variants.
fn check_cipher_suites(endpoints: &Endpoints) -> Result<String> {
    let ours = work::cipher_suite(Variant::Ours, endpoints).context("tunnel::tls")?;
    let theirs = work::cipher_suite(Variant::TokioRustls, endpoints).context("tokio-rustls")?;
    ensure!(
        ours == theirs,
        "the cipher suites differ: {ours} with tunnel::tls, {theirs} with tokio-rustls"
    );
    Ok(ours)
}

/// The median, and the range.
fn spread(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let (Some(least), Some(greatest), Some(median)) = (
        samples.first(),
        samples.last(),
        samples.get(samples.len() / 2),
    ) else {
        return "no sample".to_owned();
    };
    format!("{median:.3} ({least:.3} to {greatest:.3})")
}
