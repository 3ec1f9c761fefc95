//! The settings, and the pods that they name.

use std::path::Path;

use super::{Check, ports};
use crate::config::{self, Mode, Overrides, Settings};
use crate::pods::{Netns, PROXY_PORTS, addresses_here};

/// The settings of the file and the environment; without a file that is not complete, the
/// defaults.
pub(super) fn read(file: Option<&Path>) -> (Settings, Vec<Check>) {
    let name = "settings";
    match (config::load(file, &Overrides::default()), file) {
        (Ok(settings), _) => {
            let source = file.map_or_else(
                || "the environment".into(),
                |file| file.display().to_string(),
            );
            let mut checks = vec![Check::ok(name, format!("{source}: nothing is wrong"))];
            let warnings = settings.warnings.iter();
            checks.extend(warnings.map(|text| {
                Check::warn(name, text.as_str(), "change it, or leave it if it is meant")
            }));
            (settings, checks)
        }
        (Err(error), Some(file)) => {
            let detail = format!("{}: {error}", file.display());
            let remedy = "correct the file; the checks below are for the defaults";
            (Settings::initial(), vec![Check::fail(name, detail, remedy)])
        }
        (Err(_incomplete), None) => {
            let detail = "no file given: the checks below are for the defaults";
            (Settings::initial(), vec![Check::ok(name, detail)])
        }
    }
}

/// A line for each pod, and one for each of its ports that somebody else has.
pub(super) fn pods(settings: &Settings) -> Vec<Check> {
    let pods = settings.pods.iter();
    let mut checks: Vec<Check> = pods
        .flat_map(|pod| self::pod(&pod.workload.to_string(), &pod.netns))
        .collect();
    if matches!(settings.mode, Mode::Dedicated { .. }) {
        checks.extend(pod("this machine", Path::new("/proc/self/ns/net")));
    }
    checks
}

fn pod(workload: &str, path: &Path) -> Vec<Check> {
    let name = format!("pod.{workload}");
    let found = Netns::open(path)
        .and_then(|netns| netns.visit(|| (addresses_here(), ports::holders(&PROXY_PORTS))));
    let (addresses, holders) = match found {
        Ok(found) => found,
        Err(error) => {
            let remedy = "correct pods[].netns, or take the pod out until it is there";
            return vec![Check::fail(name, error.to_string(), remedy)];
        }
    };
    let mut checks = vec![match addresses {
        Ok(addresses) if !addresses.is_empty() => {
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let detail = format!("{} with {}", path.display(), list.join(", "));
            Check::ok(&name, detail)
        }
        Ok(_none) => Check::fail(
            &name,
            format!("{} has no address but loopback", path.display()),
            "give the pod an address: it cannot be enrolled without",
        ),
        Err(error) => Check::fail(&name, error.to_string(), "look at the pod's interfaces"),
    }];
    checks.extend(holders.iter().map(|holder| holder.check(&name)));
    checks
}
