//! The settings, and the pods that they list.

use std::path::Path;

use super::ports::{self, Holder};
use super::{Check, Status};
use crate::pods::{Netns, OptionalListener, interface_addresses};
use mesh::PROXY_PORTS;
use settings::{self, Mode, Overrides, Settings};

/// The settings of the file and the environment. Without a file the environment may be incomplete;
/// then the defaults are used.
pub(super) fn read(file: Option<&Path>) -> (Settings, Vec<Check>) {
    let name = "settings";
    match (settings::load(file, &Overrides::default()), file) {
        (Ok(settings), _) => {
            let source = file.map_or_else(
                || "the environment".into(),
                |file| file.display().to_string(),
            );
            let mut checks = vec![Check::ok(name, format!("{source}: no errors"))];
            let warnings = settings.warnings.iter();
            checks.extend(warnings.map(|text| {
                Check::warn(
                    name,
                    text.as_str(),
                    "change the setting, or keep it if it is intended",
                )
            }));
            (settings, checks)
        }
        (Err(error), Some(file)) => {
            let detail = format!("{}: {error}", file.display());
            let remedy = "correct the file; the checks below use the defaults";
            (Settings::initial(), vec![Check::fail(name, detail, remedy)])
        }
        (Err(_incomplete), None) => {
            let detail = "no file given: the checks below use the defaults";
            (Settings::initial(), vec![Check::ok(name, detail)])
        }
    }
}

/// A check for each pod, and one for each of its ports that another process holds.
pub(super) fn pods(settings: &Settings) -> Vec<Check> {
    let listeners = listeners(settings);
    let pods = settings.pods.iter();
    let mut checks: Vec<Check> = pods
        .flat_map(|pod| self::pod(&pod.workload.to_string(), &pod.netns, &listeners))
        .collect();
    if matches!(settings.mode, Mode::Dedicated { .. }) {
        let own = Path::new("/proc/self/ns/net");
        checks.extend(pod("this machine", own, &listeners));
    }
    checks
}

/// The optional listeners that the settings enable.
fn listeners(settings: &Settings) -> Vec<OptionalListener> {
    let dns = settings.dns.as_ref().map(|_| OptionalListener::Dns);
    let socks5 = settings.socks5.then_some(OptionalListener::Socks5);
    dns.into_iter().chain(socks5).collect()
}

/// The holders of the proxy's ports in the calling thread's network namespace.
fn holders(listeners: &[OptionalListener]) -> Vec<Holder> {
    let mut tcp = PROXY_PORTS.to_vec();
    tcp.extend(listeners.iter().map(|listener| listener.port()));
    // DNS queries come over UDP as well.
    let dns = listeners
        .iter()
        .filter(|listener| **listener == OptionalListener::Dns);
    let udp: Vec<u16> = dns.map(|listener| listener.port()).collect();
    ports::holders(&tcp, &udp)
}

/// A port of an optional listener is only a warning: the pod is served without that listener.
fn port(holder: &Holder, name: &str, listeners: &[OptionalListener]) -> Check {
    let check = holder.check(name);
    let listener = listeners
        .iter()
        .find(|listener| listener.port() == holder.port());
    let consequence = match listener {
        Some(OptionalListener::Dns) => "the proxy does not answer the pod's DNS queries",
        Some(OptionalListener::Socks5) => "the pod cannot use the proxy's SOCKS server",
        Some(OptionalListener::Hbone) | None => return check,
    };
    match check.status {
        Status::Fail => Check {
            status: Status::Warn,
            detail: format!("{}: {consequence}", check.detail),
            ..check
        },
        Status::Ok | Status::Warn => check,
    }
}

fn pod(workload: &str, path: &Path, listeners: &[OptionalListener]) -> Vec<Check> {
    let name = format!("pod.{workload}");
    let found = Netns::open(path)
        .and_then(|netns| netns.visit(|| (interface_addresses(), holders(listeners))));
    let (addresses, holders) = match found {
        Ok(found) => found,
        Err(error) => {
            let remedy =
                "correct pods[].netns, or remove the pod from the settings until it exists";
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
            "add an address to the pod: a pod without one cannot be enrolled",
        ),
        Err(error) => Check::fail(&name, error.to_string(), "check the pod's interfaces"),
    }];
    checks.extend(holders.iter().map(|holder| port(holder, &name, listeners)));
    checks
}
