//! Checks of the values against each other and against the mesh, after all layers are merged.

use std::fmt::Display;
use std::time::Duration;

use foldhash::HashMap;

use super::environment::WorkloadInfo;
use super::file::ModeName;
use super::units::show;
use super::{Bytes, CaptureBy, ConfigError, Mode, Settings};
use mesh::{Identity, NetworkMode, Uid, Workload, yaml};
use telemetry::Filter;

pub(super) fn out_of_range<T: Display>(
    key: &'static str,
    found: T,
    least: T,
    most: T,
) -> ConfigError {
    let (found, least, most) = (found.to_string(), least.to_string(), most.to_string());
    ConfigError::OutOfRange {
        key,
        found,
        least,
        most,
    }
}

fn within<T: Display + PartialOrd>(
    key: &'static str,
    found: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if found < least || found > most {
        return Err(out_of_range(key, found, least, most));
    }
    Ok(())
}

/// A duration between `least` and a year.
fn lasts(key: &'static str, found: Duration, least: Duration) -> Result<(), ConfigError> {
    let most = Duration::from_secs(365 * 24 * 60 * 60);
    if found < least || found > most {
        return Err(out_of_range(
            key,
            show(found),
            show(least),
            "365days".to_owned(),
        ));
    }
    Ok(())
}

fn contradiction(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Contradiction {
        key: key.into(),
        problem: problem.into(),
    }
}

/// Checked before the mesh is assembled, because its workloads inherit the trust domain.
pub(super) fn trust_domain(trust_domain: &str) -> Result<(), ConfigError> {
    match Identity::new(trust_domain, "n", "s") {
        Ok(_) => Ok(()),
        Err(_) => Err(contradiction(
            "trustDomain",
            format!("{trust_domain:?} is not a trust domain"),
        )),
    }
}

/// The layers' values for the mode and its workload.
pub(super) struct ModeSources {
    pub(super) mode: Option<ModeName>,
    pub(super) flag: Option<String>,
    pub(super) file: Option<String>,
    pub(super) info: Option<WorkloadInfo>,
}

/// Determines the mode: the pods of a node, or one workload.
pub(super) fn mode(settings: &mut Settings, sources: &ModeSources) -> Result<(), ConfigError> {
    let named = sources.flag.as_ref().or(sources.file.as_ref());
    // A flag that names the workload implies the mode.
    let dedicated = sources.flag.is_some() || sources.mode == Some(ModeName::Dedicated);
    if !dedicated {
        return match named {
            Some(_) => Err(contradiction("workload", "only possible in mode dedicated")),
            None => Ok(()),
        };
    }
    if !settings.pods.is_empty() {
        let problem =
            "not possible in mode dedicated, which serves one workload on a machine of its own";
        return Err(contradiction("pods", problem));
    }
    if settings.node_agent.is_some() {
        let problem = "not possible in mode dedicated, which serves one workload on a machine of its \
                       own";
        return Err(contradiction("nodeAgent.socket", problem));
    }
    let (found, named) = match (named, &sources.info) {
        (Some(uid), _) => {
            let uid = Uid(uid.as_str().into());
            (find(settings, "workload".to_owned(), &uid), uid)
        }
        (None, Some(info)) => {
            let uid = Uid::of_pod(&settings.cluster_id, &info.namespace, &info.name);
            (described(settings, info), uid)
        }
        (None, None) => {
            return Err(ConfigError::Missing {
                key: "workload",
                remedy: "mode dedicated needs the workload that this proxy serves: set this key or \
                         PROXY_WORKLOAD_INFO",
            });
        }
    };
    let (uid, node) = match found {
        Ok(workload) => (workload.uid.clone(), workload.node.clone()),
        // The control plane may know it.
        Err(_unknown) if settings.xds.is_some() => (named, settings.node.clone()),
        Err(unknown) => return Err(unknown),
    };
    if settings.node.is_empty() {
        settings.node = node;
    }
    settings.mode = Mode::Dedicated { workload: uid };
    Ok(())
}

fn described<'a>(settings: &'a Settings, info: &WorkloadInfo) -> Result<&'a Workload, ConfigError> {
    let mut fitting = settings.local_mesh.workloads.iter().filter(|workload| {
        *workload.namespace == *info.namespace
            && *workload.name == *info.name
            && *workload.service_account == *info.service_account
    });
    let refuse = |problem| ConfigError::Environment {
        name: "PROXY_WORKLOAD_INFO",
        problem,
    };
    let what = format!(
        "workload {} of namespace {} with service account {}",
        info.name, info.namespace, info.service_account
    );
    match (fitting.next(), fitting.next()) {
        (Some(workload), None) => Ok(workload),
        (None, _) => Err(refuse(format!("the mesh has no {what}"))),
        (Some(one), Some(other)) => Err(refuse(format!(
            "the mesh has more than one {what}: {} and {}; name one with the key workload",
            one.uid, other.uid
        ))),
    }
}

fn find<'a>(settings: &'a Settings, key: String, uid: &Uid) -> Result<&'a Workload, ConfigError> {
    let workloads = &settings.local_mesh.workloads;
    workloads
        .iter()
        .find(|workload| workload.uid == *uid)
        .ok_or_else(|| {
            let known: Vec<&str> = workloads.iter().map(|workload| &*workload.uid.0).collect();
            let nearest = yaml::nearest(&uid.0, &known).map(|uid| Uid(uid.into()));
            ConfigError::UnknownWorkload {
                key,
                uid: uid.clone(),
                nearest,
            }
        })
}

/// Checks all other values.
pub(super) fn all(settings: &mut Settings) -> Result<(), ConfigError> {
    if settings.node.is_empty() {
        let remedy =
            "set this key, NODE_NAME or --node to the name of the node that this proxy runs on";
        return Err(ConfigError::Missing {
            key: "node",
            remedy,
        });
    }
    if !settings.admin.ip().to_canonical().is_loopback() {
        let problem = format!(
            "{} is not a loopback address; every client of the admin interface can stop the proxy",
            settings.admin
        );
        return Err(contradiction("admin.address", problem));
    }
    if let Err(error) = settings.log.filter.parse::<Filter>() {
        let problem = format!("{:?} is not a log filter: {error}", settings.log.filter);
        return Err(contradiction("log.filter", problem));
    }
    within("threads", settings.threads.get(), 1, 256)?;
    listeners(settings)?;
    node_agent(settings)?;
    numbers(settings)?;
    durations(settings)?;
    overrides(settings)?;
    if settings.capture.by == CaptureBy::Rules {
        let ignored = settings.capture.ignored_by_rules();
        settings.warnings.extend(ignored);
    }
    pods(settings)
}

/// Checks that each workload has one entry; warns about an entry that changes nothing.
fn overrides(settings: &mut Settings) -> Result<(), ConfigError> {
    let mut seen: HashMap<&Uid, usize> = HashMap::default();
    for (at, entry) in settings.overrides.iter().enumerate() {
        let key = format!("overrides[{at}].workload");
        if entry.workload.0.is_empty() {
            let problem = "must not be empty".to_owned();
            return Err(ConfigError::Contradiction { key, problem });
        }
        if let Some(first) = seen.insert(&entry.workload, at) {
            return Err(ConfigError::Duplicate {
                key,
                found: entry.workload.to_string(),
                first: format!("overrides[{first}].workload"),
            });
        }
        if entry.same_node.is_none() && entry.acceleration.is_none() {
            settings.warnings.push(format!(
                "overrides[{at}]: changes nothing; it sets neither sameNode nor acceleration"
            ));
        }
    }
    Ok(())
}

fn listeners(settings: &Settings) -> Result<(), ConfigError> {
    let taken = [
        ("admin.address", settings.admin),
        ("metrics.address", settings.metrics),
        ("readiness.address", settings.readiness),
    ];
    for (at, (key, address)) in taken.iter().enumerate() {
        // Port 0 lets the system choose; it chooses a different one each time.
        let earlier = taken.iter().take(at).find(|(_, other)| other == address);
        if let Some((first, _)) = earlier.filter(|_| address.port() != 0) {
            return Err(ConfigError::Duplicate {
                key: (*key).to_owned(),
                found: address.to_string(),
                first: (*first).to_owned(),
            });
        }
    }
    Ok(())
}

fn node_agent(settings: &Settings) -> Result<(), ConfigError> {
    let agent = settings.node_agent.as_ref();
    if agent.is_some_and(|agent| agent.socket.as_os_str().is_empty()) {
        return Err(contradiction("nodeAgent.socket", "must not be empty"));
    }
    Ok(())
}

fn numbers(settings: &Settings) -> Result<(), ConfigError> {
    let hbone = &settings.hbone;
    // RFC 9113, sections 6.5.2 and 6.9.1: the smallest and largest windows and frames.
    let (least, most) = (Bytes(65_535), Bytes((1 << 31) - 1));
    within("hbone.streamWindow", hbone.stream_window, least, most)?;
    within(
        "hbone.connectionWindow",
        hbone.connection_window,
        least,
        most,
    )?;
    within(
        "hbone.maxFrame",
        hbone.max_frame,
        Bytes(16_384),
        Bytes((1 << 24) - 1),
    )?;
    within(
        "hbone.sendBuffer",
        hbone.send_buffer,
        Bytes(16_384),
        Bytes(1 << 30),
    )?;
    within(
        "hbone.headerListMax",
        hbone.header_list_max,
        Bytes(1 << 10),
        Bytes(1 << 20),
    )?;
    within(
        "hbone.maxStreamsPerConnection",
        hbone.max_streams_per_connection,
        1,
        65_535,
    )?;
    within(
        "hbone.maxConcurrentStreams",
        hbone.max_concurrent_streams,
        1,
        65_535,
    )?;
    if hbone.connection_window < hbone.stream_window {
        let problem = format!(
            "{} is less than hbone.streamWindow, {}",
            hbone.connection_window, hbone.stream_window
        );
        return Err(contradiction("hbone.connectionWindow", problem));
    }
    let verdicts = settings.capture.verdicts;
    within("capture.verdicts", verdicts, 16, 1_048_576)?;
    // 0 is the mark of a packet without one.
    within("capture.mark", settings.capture.mark, 1, u32::MAX)
}

fn durations(settings: &Settings) -> Result<(), ConfigError> {
    let hbone = &settings.hbone;
    let instant = Duration::from_millis(10);
    lasts("hbone.idleRelease", hbone.idle_release, instant)?;
    lasts("hbone.serverIdle", hbone.server_idle, instant)?;
    lasts("hbone.connectTimeout", hbone.connect_timeout, instant)?;
    lasts("hbone.handshakeTimeout", hbone.handshake_timeout, instant)?;
    lasts("hbone.responseTimeout", hbone.response_timeout, instant)?;
    lasts("hbone.pingInterval", hbone.ping_interval, instant)?;
    lasts("hbone.pingTimeout", hbone.ping_timeout, instant)?;
    if let Some(dns) = &settings.dns {
        lasts("dns.timeout", dns.timeout, instant)?;
    }
    // An application waits no longer for a connection, and a place to wait is kept for so long.
    let (most, wait) = (Duration::from_secs(60), settings.workload_wait);
    if wait > most {
        let (found, least, most) = (show(wait), show(Duration::ZERO), show(most));
        return Err(out_of_range("newPods.workloadWait", found, least, most));
    }
    let (key, leaf_ttl) = (settings.ca.leaf_ttl_key(), settings.ca.leaf_ttl());
    lasts(key, leaf_ttl, Duration::from_secs(2))?;
    lasts(
        "termination.deadline",
        settings.termination_deadline,
        Duration::ZERO,
    )?;
    if let Some(keepalive) = &settings.keepalive {
        lasts("keepalive.time", keepalive.time, Duration::from_secs(1))?;
        lasts(
            "keepalive.interval",
            keepalive.interval,
            Duration::from_secs(1),
        )?;
        within("keepalive.retries", keepalive.retries, 1, 127)?;
    }
    Ok(())
}

fn pods(settings: &mut Settings) -> Result<(), ConfigError> {
    let mut workloads: HashMap<_, usize> = HashMap::default();
    let mut places: HashMap<_, usize> = HashMap::default();
    let mut warnings = Vec::new();
    for (at, pod) in settings.pods.iter().enumerate() {
        let key = format!("pods[{at}].workload");
        let workload = match find(settings, key.clone(), &pod.workload) {
            Ok(workload) => Some(workload),
            // The control plane may know it.
            Err(_unknown) if settings.xds.is_some() => None,
            Err(unknown) => return Err(unknown),
        };
        if let Some(workload) = workload {
            warnings.extend(enrollable(settings, &key, workload)?);
        }
        if let Some(first) = workloads.insert(&pod.workload, at) {
            let (found, first) = (pod.workload.to_string(), format!("pods[{first}].workload"));
            return Err(ConfigError::Duplicate { key, found, first });
        }
        if pod.netns.as_os_str().is_empty() {
            return Err(contradiction(
                format!("pods[{at}].netns"),
                "must not be empty",
            ));
        }
        if let Some(first) = places.insert(&pod.netns, at) {
            let (found, first) = (
                pod.netns.display().to_string(),
                format!("pods[{first}].netns"),
            );
            return Err(ConfigError::Duplicate {
                key: format!("pods[{at}].netns"),
                found,
                first,
            });
        }
    }
    settings.warnings.extend(warnings);
    Ok(())
}

/// Checks that a workload can be enrolled here; returns a warning if it runs on another node.
fn enrollable(
    settings: &Settings,
    key: &str,
    workload: &Workload,
) -> Result<Option<String>, ConfigError> {
    let uid = &workload.uid;
    let impossible = if workload.network_mode == NetworkMode::HostNetwork {
        Some("uses its node's network")
    } else if workload.workload_ips.is_empty() {
        Some("has no workloadIps")
    } else {
        None
    };
    if let Some(why) = impossible {
        let problem = format!("{uid} cannot be enrolled: it {why}");
        return Err(contradiction(key, problem));
    }
    Ok((workload.node != settings.node).then(|| {
        format!(
            "{key}: {uid} runs on node {:?} according to the mesh, but this proxy runs on {:?}",
            workload.node, settings.node
        )
    }))
}
