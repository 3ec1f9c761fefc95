//! Turns the settings into the configuration of each module. The crate `settings` knows none of
//! them, and they do not know the settings: only this file knows both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio::runtime::Handle;

use super::enrollment::{DesiredPod, PodKey};
use crate::agent::zds;
use crate::dns;
use crate::{bpf, pods, proxy};
use mesh::{Identity, TunnelProtocol, Uid, Workload};
use settings::{self, Mode, Settings};
use telemetry::{Filter, FilterError, LogConfig, LogFormat};
use tunnel::hbone;
use tunnel::tls::{self, Issuer};
use upstream::ads;
use upstream::ca::istiod::{self, IstiodCa};
use upstream::ca::local::LocalCa;

pub(super) fn log(settings: &Settings) -> Result<LogConfig, FilterError> {
    Ok(LogConfig {
        filter: Filter::default().with(&settings.log.filter)?,
        format: match settings.log.format {
            settings::LogFormat::Text => LogFormat::Text,
            settings::LogFormat::Json => LogFormat::Json,
        },
    })
}

pub(super) fn kernel(settings: &Settings) -> bpf::Config {
    let capture = &settings.capture;
    bpf::Config {
        directory: capture.bpf_directory.clone(),
        cgroup: capture.cgroup.clone(),
        mark: capture.mark,
        delivery_mark: pods::routing::DELIVERY_MARK,
        exemptions: exemptions(settings),
        ports: bpf::Ports::default(),
        max_entries: capture.verdicts,
    }
}

/// What capture leaves alone. In dedicated mode the proxy shares its namespace with the workload, so
/// its own servers must stay reachable. The same ports of other workloads are captured.
pub(super) fn exemptions(settings: &Settings) -> bpf::Exemptions {
    let capture = &settings.capture;
    bpf::Exemptions {
        outbound_ports: capture.exempt_ports.clone(),
        outbound_cidrs: capture.exempt_cidrs.clone(),
        inbound_ports: match settings.mode {
            Mode::Dedicated { .. } => vec![settings.metrics.port(), settings.readiness.port()],
            Mode::Shared => Vec::new(),
        },
        inbound_cidrs: capture.exempt_sources.clone(),
    }
}

/// The issuer of certificates.
pub(super) fn issuer(settings: &Settings) -> Result<Arc<dyn Issuer>, super::Error> {
    Ok(match &settings.ca {
        settings::Authority::Local(local) => Arc::new(LocalCa::open(
            &local.directory,
            &settings.trust_domain,
            local.leaf_ttl,
        )?),
        settings::Authority::Remote(remote) => {
            let upstream = &remote.upstream;
            Arc::new(IstiodCa::new(istiod::Config {
                root: match &upstream.root {
                    Some(file) => istiod::Root::File(file.clone()),
                    None => istiod::Root::System,
                },
                alt_hostname: upstream.hostname.clone(),
                mesh_roots: remote.mesh_roots.clone(),
                token: upstream.token.clone(),
                cluster_id: settings.cluster_id.to_string(),
                headers: upstream.headers.0.clone(),
                requester: match settings.mode {
                    Mode::Shared => istiod::Requester::Node,
                    Mode::Dedicated { .. } => istiod::Requester::Workload,
                },
                validity: remote.leaf_ttl,
                ..istiod::Config::new(upstream.address.clone())
            })?)
        }
    })
}

/// The file with the mesh's roots; only a remote certificate authority can have one.
pub(super) fn mesh_roots(settings: &Settings) -> Option<PathBuf> {
    match &settings.ca {
        settings::Authority::Local(_) => None,
        settings::Authority::Remote(remote) => remote.mesh_roots.clone(),
    }
}

/// How certificates are kept, and which certificates of peers are revoked.
pub(super) fn tls(settings: &Settings) -> Result<tls::Config, tls::RevocationError> {
    let revocations = settings.crl.as_deref().map(tls::Revocations::open);
    Ok(tls::Config {
        revocations: revocations.transpose()?.unwrap_or_default(),
        ..tls::Config::default()
    })
}

/// How to reach the control plane's discovery service; none if the settings name no control plane.
pub(super) fn xds(settings: &Settings) -> Option<ads::Config> {
    let settings::Xds {
        upstream,
        on_demand,
    } = settings.xds.as_ref()?;
    let root = match &upstream.root {
        Some(file) => ads::Root::File(file.clone()),
        None => ads::Root::System,
    };
    let instance = &settings.instance;
    let metadata = instance.metadata.iter();
    let node = ads::Node {
        instance_ip: instance.ip.clone(),
        pod: instance.pod.clone(),
        namespace: instance.namespace.clone(),
        node: settings.node.to_string(),
        cluster_id: settings.cluster_id.to_string(),
        cluster_domain: instance.cluster_domain.clone(),
        // Istio's control plane compares versions of the form 1.2 with its own. The prefix keeps this
        // proxy's out of that.
        version: format!("v{}", telemetry::build::version()),
        metadata: metadata
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect(),
    };
    Some(ads::Config {
        alt_hostname: upstream.hostname.clone(),
        token: upstream.token.clone(),
        headers: upstream.headers.0.clone(),
        trust_domain: settings.trust_domain.to_string(),
        subscription: if *on_demand {
            ads::Subscription::OnDemand
        } else {
            ads::Subscription::Everything
        },
        ..ads::Config::new(&upstream.address, root, node)
    })
}

/// The system resolves backends that have names, on the main runtime. The timeout is that of one
/// server in `getaddrinfo(3)`: an application waits no longer.
pub(super) fn resolver(runtime: Handle) -> Arc<dyn proxy::Resolve> {
    const MAX_CONCURRENT: usize = 128;
    const TIMEOUT: Duration = Duration::from_secs(5);
    Arc::new(proxy::SystemResolver::new(runtime, MAX_CONCURRENT, TIMEOUT))
}

pub(super) fn admin(settings: &Settings) -> admin::Config {
    admin::Config {
        admin: settings.admin,
        metrics: settings.metrics,
        readiness: settings.readiness,
    }
}

pub(super) fn path(settings: &Settings) -> proxy::Config {
    let domain = domain(&settings.instance.cluster_domain);
    proxy::Config {
        network: settings.network.clone(),
        domain: domain.clone(),
        workers: settings.threads.get(),
        socks5: settings.socks5,
        localhost_app_tunnel: settings.localhost_app_tunnel,
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
        dns: settings.dns.map(|own| dns::Config {
            domain,
            timeout: own.timeout,
            resolver: dns::system_resolver(),
        }),
    }
}

/// A domain in the form in which names are compared with it.
fn domain(text: &str) -> Arc<str> {
    text.trim_end_matches('.').to_ascii_lowercase().into()
}

fn hbone(settings: &settings::Hbone) -> hbone::Config {
    // Values beyond what HTTP/2 can express are refused when the settings are read.
    let narrow = |bytes: settings::Bytes| u32::try_from(bytes.0).unwrap_or(u32::MAX);
    let wide = |bytes: settings::Bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX);
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
        // The sum of both limits of a dial, so that the limit that was exceeded is reported.
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

/// Which paths the operator allows; `join_mode` turns the acceleration setting into what this kernel
/// can do.
pub(super) fn path_settings(
    settings: &Settings,
    join_mode: impl Fn(settings::Acceleration) -> mesh::fastpath::JoinMode,
) -> mesh::PathSettings {
    let allowed = |same_node, acceleration| mesh::AllowedPaths {
        same_node: match same_node {
            settings::SameNode::Direct => mesh::SameNode::Direct,
            settings::SameNode::Tunnel => mesh::SameNode::Tunnel,
        },
        join_mode: join_mode(acceleration),
    };
    let (same_node, acceleration) = (settings.same_node, settings.acceleration);
    let overrides = settings.overrides.iter().map(|own| {
        let allowed = allowed(
            own.same_node.unwrap_or(same_node),
            own.acceleration.unwrap_or(acceleration),
        );
        (own.workload.clone(), allowed)
    });
    mesh::PathSettings {
        mesh: allowed(same_node, acceleration),
        overrides: overrides.collect(),
    }
}

/// The pods of the settings: the listed ones, or in dedicated mode the process's own namespace.
pub(super) fn pods(settings: &Settings) -> Vec<DesiredPod> {
    let desired = |workload: &Uid, netns: &Path| DesiredPod {
        key: PodKey::Listed(workload.clone()),
        uid: workload.clone(),
        account: None,
        announced: None,
        netns: pods::NetnsSource::Path(netns.to_owned()),
    };
    match &settings.mode {
        Mode::Shared => {
            let listed = settings.pods.iter();
            listed
                .map(|pod| desired(&pod.workload, &pod.netns))
                .collect()
        }
        Mode::Dedicated { workload } => vec![desired(workload, Path::new("/proc/self/ns/net"))],
    }
}

/// A pod that the node agent has announced. The uid of its workload has the form that Istio's
/// control plane gives it.
pub(super) fn announced(
    settings: &Settings,
    uid: &zds::PodUid,
    info: &zds::PodInfo,
    netns: &pods::NetnsDescriptor,
) -> DesiredPod {
    DesiredPod {
        key: PodKey::Announced(uid.clone()),
        uid: Uid::of_pod(&settings.cluster_id, &info.namespace, &info.name),
        account: Some(info.service_account.clone()),
        announced: workload(settings, info).map(Arc::new),
        netns: pods::NetnsSource::Descriptor(netns.clone()),
    }
}

/// What is known of a pod's workload without the control plane, except its addresses; none if its
/// names do not form an identity.
pub(super) fn workload(settings: &Settings, info: &zds::PodInfo) -> Option<Workload> {
    let (name, namespace, account) = (&info.name, &info.namespace, &info.service_account);
    let uid = Uid::of_pod(&settings.cluster_id, namespace, name);
    let initial = Workload::new(&uid.0, name, namespace, account).ok()?;
    Some(Workload {
        identity: Identity::new(&settings.trust_domain, namespace, account).ok()?,
        trust_domain: settings.trust_domain.clone(),
        network: settings.network.clone(),
        node: settings.node.clone(),
        cluster_id: settings.cluster_id.clone(),
        protocol: TunnelProtocol::Hbone,
        ..initial
    })
}

/// Keys that identify the node. If one of them changes, the file is another node's, and none of it
/// is applied.
pub(super) const IDENTIFYING: [&str; 5] = ["node", "clusterId", "network", "trustDomain", "mode"];

/// The changed keys whose new value takes effect only with a restart.
pub(super) fn fixed_keys_that_differ(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differences = [
        ("node", old.node != new.node),
        ("clusterId", old.cluster_id != new.cluster_id),
        ("network", old.network != new.network),
        ("trustDomain", old.trust_domain != new.trust_domain),
        ("mode", old.mode != new.mode),
        ("nodeAgent", old.node_agent != new.node_agent),
        ("ca", old.ca != new.ca),
        ("xds", old.xds != new.xds),
        ("crl", old.crl != new.crl),
        ("admin", old.admin != new.admin),
        ("metrics", old.metrics != new.metrics),
        ("socks5", old.socks5 != new.socks5),
        (
            "applicationTunnel",
            old.localhost_app_tunnel != new.localhost_app_tunnel,
        ),
        ("readiness", old.readiness != new.readiness),
        ("capture.by", old.capture.by != new.capture.by),
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
        ("dns", old.dns != new.dns),
        (
            "newPods.workloadWait",
            old.workload_wait != new.workload_wait,
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
