//! Turns the settings into each room's own configuration. No room but `config` knows the
//! settings, and `config` knows no room: this file is the only place where they meet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio::runtime::Handle;

use super::enrollment::Wanted;
use crate::ca::local::{LocalCa, LocalCaError};
use crate::config::{self, Mode, Settings};
use crate::telemetry::{Filter, FilterError, LogConfig, LogFormat};
use crate::{admin, hbone, kernel, path, pods};

pub(super) fn log(settings: &Settings) -> Result<LogConfig, FilterError> {
    Ok(LogConfig {
        filter: Filter::default().with(&settings.log.filter)?,
        format: match settings.log.format {
            config::LogFormat::Text => LogFormat::Text,
            config::LogFormat::Json => LogFormat::Json,
        },
    })
}

pub(super) fn kernel(settings: &Settings) -> kernel::Config {
    let capture = &settings.capture;
    kernel::Config {
        directory: capture.bpf_directory.clone(),
        cgroup: capture.cgroup.clone(),
        mark: capture.mark,
        delivery_mark: pods::delivery::DELIVERY_MARK,
        exemptions: exemptions(settings),
        ports: kernel::Ports::default(),
        verdicts: capture.verdicts,
    }
}

/// What capture leaves alone. In dedicated mode the proxy shares its namespace with the workload,
/// so its own servers have to be reachable; other workloads' same ports are captured as ever.
pub(super) fn exemptions(settings: &Settings) -> kernel::Exemptions {
    let capture = &settings.capture;
    kernel::Exemptions {
        outbound_ports: capture.exempt_ports.clone(),
        outbound_cidrs: capture.exempt_cidrs.clone(),
        inbound_ports: match settings.mode {
            Mode::Dedicated { .. } => vec![settings.metrics.port(), settings.readiness.port()],
            Mode::Shared => Vec::new(),
        },
        inbound_cidrs: capture.exempt_sources.clone(),
    }
}

pub(super) fn issuer(settings: &Settings) -> Result<LocalCa, LocalCaError> {
    LocalCa::open(
        &settings.ca.directory,
        &settings.trust_domain,
        settings.ca.leaf_ttl,
    )
}

/// Backends that have names are resolved on the main runtime, by the system. `getaddrinfo(3)` gives
/// up after five seconds for each server by default; an application waits no longer than that.
pub(super) fn resolver(runtime: Handle) -> Arc<dyn path::Resolve> {
    const AT_ONCE: usize = 32;
    const TIMEOUT: Duration = Duration::from_secs(5);
    Arc::new(path::SystemResolver::new(runtime, AT_ONCE, TIMEOUT))
}

pub(super) fn admin(settings: &Settings) -> admin::Config {
    admin::Config {
        admin: settings.admin,
        metrics: settings.metrics,
        readiness: settings.readiness,
    }
}

pub(super) fn path(settings: &Settings) -> path::Config {
    path::Config {
        network: settings.network.clone(),
        workers: settings.threads.get(),
        mark: settings.capture.mark,
        dial: pods::Dial {
            timeout: settings.hbone.connect_timeout,
            keepalive: settings.keepalive.map(|keepalive| {
                TcpKeepalive::new()
                    .with_time(keepalive.time)
                    .with_interval(keepalive.interval)
                    .with_retries(keepalive.retries)
            }),
        },
        handshake_timeout: settings.hbone.handshake_timeout,
        hbone: hbone(&settings.hbone),
    }
}

fn hbone(settings: &config::Hbone) -> hbone::Config {
    // Values beyond what HTTP/2 can express are refused when the settings are read.
    let narrow = |bytes: config::Bytes| u32::try_from(bytes.0).unwrap_or(u32::MAX);
    let wide = |bytes: config::Bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX);
    hbone::Config {
        stream_window: narrow(settings.stream_window),
        connection_window: narrow(settings.connection_window),
        max_frame: narrow(settings.max_frame),
        send_buffer: wide(settings.send_buffer),
        max_streams_per_connection: settings.max_streams_per_connection as usize,
        max_concurrent_streams: settings.max_concurrent_streams,
        header_list_max: narrow(settings.header_list_max),
        idle_release: settings.idle_release,
        server_idle: settings.server_idle,
        // Around the two limits of a dial, so that the one that was exceeded is the one reported.
        connect_timeout: settings.connect_timeout + settings.handshake_timeout,
        handshake_timeout: settings.handshake_timeout,
        response_timeout: settings.response_timeout,
        keepalive: Some(hbone::Keepalive {
            interval: settings.ping_interval,
            timeout: settings.ping_timeout,
        }),
        ..hbone::Config::default()
    }
}

/// Which lanes the operator allows; `ends` says what a wish for acceleration comes to here.
pub(super) fn lanes(
    settings: &Settings,
    ends: impl Fn(config::Acceleration) -> kernel::Ends,
) -> path::Lanes {
    let allowed = |same_node, acceleration| path::Allowed {
        same_node: match same_node {
            config::SameNode::Direct => path::SameNode::Direct,
            config::SameNode::Tunnel => path::SameNode::Tunnel,
        },
        ends: ends(acceleration),
    };
    let (same_node, acceleration) = (settings.same_node, settings.acceleration);
    let overrides = settings.overrides.iter().map(|own| {
        let allowed = allowed(
            own.same_node.unwrap_or(same_node),
            own.acceleration.unwrap_or(acceleration),
        );
        (own.workload.clone(), allowed)
    });
    path::Lanes {
        mesh: allowed(same_node, acceleration),
        overrides: overrides.collect(),
    }
}

/// The pods to serve: those that are listed, or in dedicated mode the process's own namespace.
pub(super) fn pods(settings: &Settings) -> Vec<Wanted> {
    match &settings.mode {
        Mode::Shared => settings
            .pods
            .iter()
            .map(|pod| Wanted {
                uid: pod.workload.clone(),
                netns: pod.netns.clone(),
            })
            .collect(),
        Mode::Dedicated { workload } => {
            vec![Wanted {
                uid: workload.clone(),
                netns: PathBuf::from("/proc/self/ns/net"),
            }]
        }
    }
}

/// Keys that make a node the node it is: with another value the rest of a file means something
/// else, so none of it is taken over.
pub(super) const IDENTIFYING: [&str; 4] = ["node", "network", "trustDomain", "mode"];

/// Keys whose new value waits for a restart.
pub(super) fn fixed_keys_that_differ(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differences = [
        ("node", old.node != new.node),
        ("network", old.network != new.network),
        ("trustDomain", old.trust_domain != new.trust_domain),
        ("mode", old.mode != new.mode),
        ("ca", old.ca != new.ca),
        ("admin", old.admin != new.admin),
        ("metrics", old.metrics != new.metrics),
        ("readiness", old.readiness != new.readiness),
        (
            "capture.bpfDirectory",
            old.capture.bpf_directory != new.capture.bpf_directory,
        ),
        ("capture.cgroup", old.capture.cgroup != new.capture.cgroup),
        ("capture.mark", old.capture.mark != new.capture.mark),
        (
            "capture.verdicts",
            old.capture.verdicts != new.capture.verdicts,
        ),
        ("hbone", old.hbone != new.hbone),
        ("keepalive", old.keepalive != new.keepalive),
        ("threads", old.threads != new.threads),
        ("log", old.log != new.log),
    ];
    differences
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}
