//! The kernel features that capture and delivery need, tried on maps and a network namespace made for
//! the test.

use crate::bpf::{self, PinDirectory, ProgramCheck};
use crate::pods::{self, DestroyError, DestroyMethod, Destroyed, Outcome, Rehearsal};
use settings::{CaptureBy, Settings};

use super::super::capture::can_do_without;
use super::Check;

/// The remedy for errors whose text names the missing permission or feature.
const PROVIDE_IT: &str = "provide what the message names, then run `ztunnel doctor` again";

pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    if settings.capture.by == CaptureBy::Rules {
        return vec![rules(settings)];
    }
    let mut checks = vec![pins(settings)];
    let trial = ProgramCheck::load();
    checks.push(match &trial {
        Ok(trial) => {
            let detail = format!(
                "the kernel's verifier accepts all {} programs",
                trial.programs()
            );
            Check::ok("capture.programs", detail)
        }
        Err(error) => failed("capture.programs", error),
    });
    if let Ok(trial) = &trial {
        let cgroup = trial.attach_cgroup(settings.capture.cgroup.as_deref());
        checks.push(match cgroup {
            Ok(path) => Check::ok(
                "capture.cgroup",
                format!("the programs can be attached to {}", path.display()),
            ),
            Err(error) if can_do_without(settings, &error) => Check::warn(
                "capture.cgroup",
                error.to_string(),
                "without the programs the node agent's rules capture, the proxy carries every \
                 connection, and capture.exempt* have no effect; mount the host's cgroup root into \
                 the container for the fast path",
            ),
            Err(error) => failed("capture.cgroup", &error),
        });
    }
    match pods::rehearse() {
        Ok(rehearsal) => checks.extend(namespace(trial.ok().as_ref(), &rehearsal)),
        Err(error) => checks.push(failed("capture.namespace", &error)),
    }
    checks
}

fn failed(name: &str, error: &dyn std::error::Error) -> Check {
    Check::fail(name, error.to_string(), PROVIDE_IT)
}

/// Rules capture: no programs are needed, and none may capture.
fn rules(settings: &Settings) -> Check {
    let name = "capture.by";
    match bpf::captured_pods_below(&settings.capture.bpf_directory) {
        0 => Check::ok(
            name,
            "the node agent's rules in the pods capture; no kernel programs are needed",
        ),
        pods => Check::fail(
            name,
            format!(
                "the settings expect rules to capture, but the eBPF programs of a running or stopped \
                 proxy capture {pods} pods"
            ),
            "stop that proxy if it runs, then run `ztunnel kernel remove`",
        ),
    }
}

fn pins(settings: &Settings) -> Check {
    let name = "capture.pins";
    let directory = settings.capture.bpf_directory.as_path();
    match PinDirectory::inspect(directory) {
        Ok(PinDirectory::Ready(place)) => {
            let detail = format!("{} is a BPF file system", place.display());
            Check::ok(name, detail)
        }
        Ok(PinDirectory::InUse(pods)) => {
            let detail = format!(
                "{} has the pins of a running or stopped proxy: {pods} pods are captured",
                directory.display()
            );
            Check::ok(name, detail)
        }
        Ok(PinDirectory::Missing(place)) => Check::warn(
            name,
            format!("no BPF file system at {}", place.display()),
            "none needed on a host: the proxy mounts one when it starts; a container must mount the \
             host's /sys/fs/bpf, or capture ends with the container",
        ),
        Err(error) => failed(name, &error),
    }
}

/// The results of the rehearsal in a network namespace like a pod's.
fn namespace(trial: Option<&ProgramCheck>, rehearsal: &Rehearsal) -> Vec<Check> {
    use std::os::fd::AsFd as _;
    let mut checks = Vec::new();
    if let Some(trial) = trial {
        checks.push(match trial.attach_netns(rehearsal.as_fd()) {
            Ok(()) => Check::ok(
                "capture.inbound",
                "the program can be attached to a network namespace",
            ),
            Err(error) => failed("capture.inbound", &error),
        });
    }
    checks.push(match &rehearsal.listeners {
        Ok(()) => Check::ok("capture.listeners", "the proxy's listeners can be opened"),
        Err(error) => failed("capture.listeners", error),
    });
    checks.push(match &rehearsal.delivery {
        Ok(()) => Check::ok(
            "capture.delivery",
            "a connection is delivered with its client's address (tcp_fwmark_accept, \
             fwmark_reflect, routing rule and route)",
        ),
        Err(error) => failed("capture.delivery", error),
    });
    checks.extend(rehearsal.destroyed.as_ref().map(destroying));
    checks
}

/// The termination of a connection that a new policy forbids.
fn destroying(destroyed: &Result<Destroyed, DestroyError>) -> Check {
    let name = "capture.destroy";
    match destroyed {
        Ok(Destroyed {
            outcomes,
            method: DestroyMethod::Kernel,
        }) if matches!(outcomes[..], [Outcome::Destroyed]) => Check::ok(
            name,
            "the kernel terminates connections that a policy forbids (SOCK_DESTROY)",
        ),
        Ok(Destroyed { outcomes, .. }) if matches!(outcomes[..], [Outcome::Destroyed]) => {
            Check::warn(
                name,
                "this kernel has no SOCK_DESTROY; the proxy resets connections that a policy forbids \
                 with packets of its own, which takes longer",
                "run a kernel with CONFIG_INET_DIAG_DESTROY",
            )
        }
        Ok(Destroyed { outcomes, .. }) => Check::fail(
            name,
            match &outcomes[..] {
                [Outcome::Failed(failure)] => failure.to_string(),
                _ => "the kernel does not list an open connection".to_owned(),
            },
            "run a kernel with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY",
        ),
        Err(error) => failed(name, error),
    }
}
