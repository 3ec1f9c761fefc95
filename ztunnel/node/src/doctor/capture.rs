//! What capture and delivery need of the kernel, tried out on maps and a namespace of its own.

use crate::bpf::{self, PinPlace, Trial};
use crate::pods::{self, DestroyError, DestroyMethod, Destroyed, Outcome, Rehearsal};
use settings::{CaptureBy, Settings};

use super::super::capture::can_do_without;
use super::Check;

/// For errors that say themselves what is missing.
const AS_IT_SAYS: &str = "give what the message names, then run the doctor again";

pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    if settings.capture.by == CaptureBy::Rules {
        return vec![rules(settings)];
    }
    let mut checks = vec![pins(settings)];
    let trial = Trial::load();
    checks.push(match &trial {
        Ok(trial) => {
            let detail = format!("the verifier takes all {} of them", trial.programs());
            Check::ok("capture.programs", detail)
        }
        Err(error) => failed("capture.programs", error),
    });
    if let Ok(trial) = &trial {
        let cgroup = trial.attach_cgroup(settings.capture.cgroup.as_deref());
        checks.push(match cgroup {
            Ok(path) => Check::ok("capture.cgroup", format!("{} takes them", path.display())),
            Err(error) if can_do_without(settings, &error) => Check::warn(
                "capture.cgroup",
                error.to_string(),
                "without the programs the node agent's rules capture, nothing goes past the proxy, \
                 and capture.exempt* count for nothing; mount the host's cgroup root for the direct \
                 lane",
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
    Check::fail(name, error.to_string(), AS_IT_SAYS)
}

/// No programs are needed, and none may be at work.
fn rules(settings: &Settings) -> Check {
    let name = "capture.by";
    match bpf::captured_below(&settings.capture.bpf_directory) {
        0 => Check::ok(
            name,
            "the rules that the node agent puts into the pods capture, no programs are needed",
        ),
        pods => Check::fail(
            name,
            format!(
                "rules are to capture, and the programs of a proxy that runs or has run capture \
                 {pods} pods"
            ),
            "end that proxy, if it runs, and run `ztunnel kernel remove`",
        ),
    }
}

fn pins(settings: &Settings) -> Check {
    let name = "capture.pins";
    let directory = settings.capture.bpf_directory.as_path();
    match PinPlace::of(directory) {
        Ok(PinPlace::Ready(place)) => {
            let detail = format!("{} is a BPF file system", place.display());
            Check::ok(name, detail)
        }
        Ok(PinPlace::InUse(pods)) => {
            let detail = format!(
                "{} has the pins of a proxy that runs or has run: {pods} pods are captured",
                directory.display()
            );
            Check::ok(name, detail)
        }
        Ok(PinPlace::Missing(place)) => Check::warn(
            name,
            format!("no BPF file system at {}", place.display()),
            "the proxy mounts one at its start; a container must mount the host's /sys/fs/bpf, or \
             capture ends with the container",
        ),
        Err(error) => failed(name, &error),
    }
}

/// What was tried in a namespace like a pod's.
fn namespace(trial: Option<&Trial>, rehearsal: &Rehearsal) -> Vec<Check> {
    use std::os::fd::AsFd as _;
    let mut checks = Vec::new();
    if let Some(trial) = trial {
        checks.push(match trial.attach_netns(rehearsal.as_fd()) {
            Ok(()) => Check::ok("capture.inbound", "a network namespace takes the program"),
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
            "tcp_fwmark_accept, fwmark_reflect, rule and route: a connection arrives with its \
             client's address",
        ),
        Err(error) => failed("capture.delivery", error),
    });
    checks.extend(rehearsal.destroyed.as_ref().map(destroying));
    checks
}

/// Connections that a new policy forbids.
fn destroying(destroyed: &Result<Destroyed, DestroyError>) -> Check {
    let name = "capture.destroy";
    match destroyed {
        Ok(Destroyed {
            outcomes,
            method: DestroyMethod::Kernel,
        }) if matches!(outcomes[..], [Outcome::Destroyed]) => Check::ok(
            name,
            "the kernel ends connections that policy forbids (SOCK_DESTROY)",
        ),
        Ok(Destroyed { outcomes, .. }) if matches!(outcomes[..], [Outcome::Destroyed]) => {
            Check::warn(
                name,
                "this kernel has no SOCK_DESTROY; resets end connections that policy forbids, \
                 which takes longer",
                "run a kernel with CONFIG_INET_DIAG_DESTROY",
            )
        }
        Ok(Destroyed { outcomes, .. }) => Check::fail(
            name,
            match &outcomes[..] {
                [Outcome::Failed(failure)] => failure.to_string(),
                _ => "a connection that is there is not found".to_owned(),
            },
            "run a kernel with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY",
        ),
        Err(error) => failed(name, error),
    }
}
