//! The settings, and the pods that they name.

use std::path::Path;

use super::ports::{self, Holder};
use super::{Check, Verdict};
use crate::pods::{Extra, Netns, addresses_here};
use mesh::PROXY_PORTS;
use settings::{self, Mode, Overrides, Settings};

/// The settings of the file and the environment; without a file that is not complete, the
/// defaults.
pub(super) fn read(file: Option<&Path>) -> (Settings, Vec<Check>) {
    let name = "settings";
    match (settings::load(file, &Overrides::default()), file) {
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
    let extras = extras(settings);
    let pods = settings.pods.iter();
    let mut checks: Vec<Check> = pods
        .flat_map(|pod| self::pod(&pod.workload.to_string(), &pod.netns, &extras))
        .collect();
    if matches!(settings.mode, Mode::Dedicated { .. }) {
        let own = Path::new("/proc/self/ns/net");
        checks.extend(pod("this machine", own, &extras));
    }
    checks
}

/// What pods are to be served besides their connections.
fn extras(settings: &Settings) -> Vec<Extra> {
    let dns = settings.dns.as_ref().map(|_| Extra::Dns);
    let socks5 = settings.socks5.then_some(Extra::Socks5);
    dns.into_iter().chain(socks5).collect()
}

/// Who has ports in the calling thread's namespace that are to be the proxy's.
fn holders(extras: &[Extra]) -> Vec<Holder> {
    let mut tcp = PROXY_PORTS.to_vec();
    tcp.extend(extras.iter().map(|extra| extra.port()));
    // Names are asked by datagrams as well.
    let dns = extras.iter().filter(|extra| **extra == Extra::Dns);
    let udp: Vec<u16> = dns.map(|extra| extra.port()).collect();
    ports::holders(&tcp, &udp)
}

/// A pod whose port for one of the extras is taken is served all the same.
fn port(holder: &Holder, name: &str, extras: &[Extra]) -> Check {
    let check = holder.check(name);
    let extra = extras.iter().find(|extra| extra.port() == holder.port());
    let without = match extra {
        Some(Extra::Dns) => "its names are not answered on the node",
        Some(Extra::Socks5) => "it has no SOCKS",
        Some(Extra::Tunnels) | None => return check,
    };
    match check.verdict {
        Verdict::Fail => Check {
            verdict: Verdict::Warn,
            detail: format!("{}: {without}", check.detail),
            ..check
        },
        Verdict::Ok | Verdict::Warn => check,
    }
}

fn pod(workload: &str, path: &Path, extras: &[Extra]) -> Vec<Check> {
    let name = format!("pod.{workload}");
    let found =
        Netns::open(path).and_then(|netns| netns.visit(|| (addresses_here(), holders(extras))));
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
    checks.extend(holders.iter().map(|holder| port(holder, &name, extras)));
    checks
}
