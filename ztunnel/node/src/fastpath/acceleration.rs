//! Whether connections are joined: what the operator said, and what this kernel can do.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::assembly;
use crate::bpf::Kernel;
use crate::bpf::selftest::{self, Report};
use mesh::PathSettings;
use mesh::fastpath::Ends;
use settings::{Acceleration as Wish, Settings};
use telemetry::{CaseResult, Telemetry};

/// How far the self-test of the kernel has come.
#[derive(Debug)]
enum Test {
    /// Nobody has asked for it.
    NotDiscovered,
    /// It runs on a thread of its own: it takes longer than a start should.
    Running(JoinHandle<Report>),
    /// What follows from it for `auto`.
    Done(Ends),
}

/// The join, as it is in force.
#[derive(Debug)]
pub(crate) struct Acceleration {
    /// None where no programs are: nothing can be joined then.
    kernel: Option<Arc<Kernel>>,
    telemetry: Arc<Telemetry>,
    test: Test,
    /// Whether the kernel has been told to join; tried once.
    ready: Option<Ends>,
}

impl Acceleration {
    /// Nothing is joined yet.
    pub(crate) fn new(kernel: Option<Arc<Kernel>>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            kernel,
            telemetry,
            test: Test::NotDiscovered,
            ready: None,
        }
    }

    /// The lanes that the settings allow, as far as this kernel can. Begins the self-test where
    /// the settings ask for it. The kernel is left alone where another process is in charge of it.
    pub(crate) fn lanes(&mut self, settings: &Settings, in_charge: bool) -> PathSettings {
        let asks = |wish| {
            let own = settings.overrides.iter().filter_map(|own| own.acceleration);
            own.chain([settings.acceleration]).any(|it| it == wish)
        };
        if self.kernel.is_some() && asks(Wish::Auto) && matches!(self.test, Test::NotDiscovered) {
            self.test = Test::Running(tokio::task::spawn_blocking(selftest::run));
        }
        let auto = match self.test {
            Test::Done(ends) => ends,
            Test::NotDiscovered | Test::Running(_) => Ends::Apart,
        };
        if !in_charge {
            // To be told anew, should this process be in charge once.
            self.ready = None;
        }
        let wanted = asks(Wish::On) || (asks(Wish::Auto) && auto == Ends::Joined);
        let joins = in_charge && wanted;
        let possible = if joins { self.join() } else { Ends::Apart };
        let effective = i64::from(possible == Ends::Joined);
        self.telemetry.acceleration().effective.set(effective);
        let meaning = |wish| match wish {
            Wish::On => possible,
            Wish::Auto if auto == Ends::Joined => possible,
            Wish::Auto | Wish::Off => Ends::Apart,
        };
        assembly::lanes(settings, meaning)
    }

    /// Has the kernel join what it is told to.
    fn join(&mut self) -> Ends {
        let kernel = self.kernel.as_ref();
        *self
            .ready
            .get_or_insert_with(|| match kernel.map(|kernel| kernel.enable_join()) {
                None => Ends::Apart,
                Some(Ok(())) => Ends::Joined,
                Some(Err(error)) => {
                    tracing::error!(%error, "acceleration: connections cannot be joined");
                    Ends::Apart
                }
            })
    }

    /// Waits for the self-test, if it runs. Safe to cancel.
    pub(crate) async fn tested(&mut self) {
        let Test::Running(running) = &mut self.test else {
            return std::future::pending().await;
        };
        let report = running.await;
        self.test = Test::Done(match report {
            Ok(report) => self.conclude(&report),
            Err(error) => {
                tracing::error!(%error, "acceleration: the self-test ended early");
                Ends::Apart
            }
        });
    }

    fn conclude(&self, report: &Report) -> Ends {
        let failed: Vec<_> = report.failed().map(|(case, _)| case).collect();
        let results = report.findings.iter().map(|finding| {
            let result = if failed.contains(&finding.case) {
                CaseResult::Failed
            } else {
                CaseResult::Passed
            };
            (finding.case.name(), result)
        });
        self.telemetry.acceleration().show(results);
        tracing::info!(took = ?report.took, "acceleration auto: {report}");
        if report.passed() {
            Ends::Joined
        } else {
            Ends::Apart
        }
    }
}
