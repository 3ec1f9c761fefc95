//! Decides whether connections are joined: the operator's setting, and the abilities of this
//! kernel.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::assembly;
use crate::bpf::Kernel;
use crate::bpf::selftest::{self, Report};
use mesh::PathSettings;
use mesh::fastpath::JoinMode;
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
    Done(JoinMode),
}

/// The state of the join (sockmap).
#[derive(Debug)]
pub(crate) struct Acceleration {
    /// `None` without kernel programs: then no connection can be joined.
    kernel: Option<Arc<Kernel>>,
    telemetry: Arc<Telemetry>,
    test: Test,
    /// The result of enabling the join in the kernel, which is tried once.
    ready: Option<JoinMode>,
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
    pub(crate) fn path_settings(&mut self, settings: &Settings, is_active: bool) -> PathSettings {
        let asks = |wish| {
            let own = settings.overrides.iter().filter_map(|own| own.acceleration);
            own.chain([settings.acceleration]).any(|it| it == wish)
        };
        if self.kernel.is_some() && asks(Wish::Auto) && matches!(self.test, Test::NotRun) {
            self.test = Test::Running(tokio::task::spawn_blocking(selftest::run));
        }
        let auto = match self.test {
            Test::Done(join_mode) => join_mode,
            Test::NotRun | Test::Running(_) => JoinMode::Apart,
        };
        if !is_active {
            // Enabled again if this process becomes active.
            self.ready = None;
        }
        let wanted = asks(Wish::On) || (asks(Wish::Auto) && auto == JoinMode::Joined);
        let joins = is_active && wanted;
        let possible = if joins { self.join() } else { JoinMode::Apart };
        let effective = i64::from(possible == JoinMode::Joined);
        self.telemetry.acceleration().effective.set(effective);
        let meaning = |wish| match wish {
            Wish::On => possible,
            Wish::Auto if auto == JoinMode::Joined => possible,
            Wish::Auto | Wish::Off => JoinMode::Apart,
        };
        assembly::path_settings(settings, meaning)
    }

    /// Enables the join in the kernel.
    fn join(&mut self) -> JoinMode {
        let kernel = self.kernel.as_ref();
        *self
            .ready
            .get_or_insert_with(|| match kernel.map(|kernel| kernel.enable_join()) {
                None => JoinMode::Apart,
                Some(Ok(())) => JoinMode::Joined,
                Some(Err(error)) => {
                    tracing::error!(%error, "acceleration: connections cannot be joined");
                    JoinMode::Apart
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
                JoinMode::Apart
            }
        });
    }

    fn conclude(&self, report: &Report) -> JoinMode {
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
            JoinMode::Joined
        } else {
            JoinMode::Apart
        }
    }
}
