//! Decides whether connections are joined: the operator's setting, and the abilities of this
//! kernel.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::assembly;
use crate::bpf::Kernel;
use crate::bpf::selftest::{self, Report};
use mesh::PathSettings;
use mesh::fastpath::Ends;
use settings::{Acceleration as Wish, Settings};
use telemetry::{CaseResult, Telemetry};

/// The progress of the kernel self-test.
#[derive(Debug)]
enum Test {
    /// The self-test has not been needed so far.
    NotRun,
    /// The self-test runs on a thread of its own, because it would delay the start too long.
    Running(JoinHandle<Report>),
    /// The result: what `auto` means.
    Done(Ends),
}

/// The state of the join (sockmap).
#[derive(Debug)]
pub(crate) struct Acceleration {
    /// `None` without kernel programs: then no connection can be joined.
    kernel: Option<Arc<Kernel>>,
    telemetry: Arc<Telemetry>,
    test: Test,
    /// The result of enabling the join in the kernel, which is tried once.
    ready: Option<Ends>,
}

impl Acceleration {
    /// Creates the state; no connection is joined yet.
    pub(crate) fn new(kernel: Option<Arc<Kernel>>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            kernel,
            telemetry,
            test: Test::NotRun,
            ready: None,
        }
    }

    /// The paths that the settings allow and this kernel supports. Starts the self-test if a
    /// setting is `auto`. Does not change the kernel's state while another process is active.
    pub(crate) fn lanes(&mut self, settings: &Settings, in_charge: bool) -> PathSettings {
        let asks = |wish| {
            let own = settings.overrides.iter().filter_map(|own| own.acceleration);
            own.chain([settings.acceleration]).any(|it| it == wish)
        };
        if self.kernel.is_some() && asks(Wish::Auto) && matches!(self.test, Test::NotRun) {
            self.test = Test::Running(tokio::task::spawn_blocking(selftest::run));
        }
        let auto = match self.test {
            Test::Done(ends) => ends,
            Test::NotRun | Test::Running(_) => Ends::Apart,
        };
        if !in_charge {
            // Enabled again if this process becomes active.
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

    /// Enables the join in the kernel.
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

    /// Waits for the self-test, if it runs. Cancel safe.
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
