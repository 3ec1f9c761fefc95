//! Merges defaults, file, environment and flags.

mod upstream;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use super::file::{
    CaptureSection, DnsSection, File, HboneSection, KeepaliveSection, ListenSection, Range,
};
use super::units::Span;
use super::{
    Capture, ConfigError, Dns, Environment, Hbone, Keepalive, NodeAgent, Overrides, PathOverride,
    Pod, Settings, check,
};
use mesh::Uid;
use mesh::local::{Document, LocalMesh};

/// Merges the layers and checks the result.
pub(super) fn assemble(
    file: File,
    env: &Environment,
    flags: &Overrides,
    read: impl Fn(&Path) -> Result<String, ConfigError>,
) -> Result<Settings, ConfigError> {
    let mut settings = Settings::initial();
    names(&mut settings, &file, env, flags);
    listeners(&mut settings, &file, flags);
    settings.threads = threads(&file, env, flags)?;
    upstream::apply(&mut settings, &file, env, flags)?;
    capture(&mut settings.capture, &file.capture, env, flags);
    settings.dns = dns(&file.dns, env);
    let workload_wait = file.new_pods.workload_wait;
    set(
        &mut settings.workload_wait,
        workload_wait.map(|span| span.0),
    );
    fast_path(&mut settings, &file, env);
    hbone(&mut settings.hbone, &file.hbone, env);
    set(&mut settings.socks5, env.socks5.or(file.socks5.enabled));
    let localhost = env
        .localhost_app_tunnel
        .or(file.application_tunnel.localhost);
    set(&mut settings.localhost_app_tunnel, localhost);
    settings.keepalive = keepalive(&file.keepalive, env);
    logging(&mut settings, &file, env, flags);
    settings.termination_deadline = termination(&settings, &file, env);
    let mesh_file = flags
        .mesh_file
        .as_ref()
        .or(env.mesh_file.as_ref())
        .or(file.mesh_file.as_ref());
    settings.mesh_file = mesh_file.cloned();

    let pod = |pod: &super::file::PodEntry| Pod {
        workload: Uid(pod.workload.as_str().into()),
        netns: pod.netns.clone(),
    };
    settings.pods = file.pods.iter().map(pod).collect();
    settings.node_agent = node_agent(&file, env);
    let sources = check::ModeSources {
        mode: env.mode.or(file.mode),
        flag: flags.workload.clone(),
        file: file.workload.clone(),
        info: env.workload.clone(),
    };
    check::trust_domain(&settings.trust_domain)?;
    settings.local_mesh = mesh(file, env, &settings, read)?;
    settings.warnings = settings.local_mesh.warnings.clone();
    let ignored = env.ignored.iter();
    settings.warnings.extend(
        ignored.map(|name| format!("environment variable {name}: has no effect in this proxy")),
    );
    check::mode(&mut settings, &sources)?;
    check::all(&mut settings)?;
    Ok(settings)
}

/// Sets a value if there is one.
fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn first(values: [Option<&String>; 3]) -> Option<&str> {
    values.into_iter().flatten().next().map(String::as_str)
}

fn names(settings: &mut Settings, file: &File, env: &Environment, flags: &Overrides) {
    let node = first([flags.node.as_ref(), env.node.as_ref(), file.node.as_ref()]);
    set(&mut settings.node, node.map(Into::into));
    let cluster = first([
        flags.cluster_id.as_ref(),
        env.cluster_id.as_ref(),
        file.cluster_id.as_ref(),
    ]);
    set(&mut settings.cluster_id, cluster.map(Into::into));
    let network = first([
        flags.network.as_ref(),
        env.network.as_ref(),
        file.network.as_ref(),
    ]);
    set(&mut settings.network, network.map(Into::into));
    let trust_domain = first([
        flags.trust_domain.as_ref(),
        None,
        file.trust_domain.as_ref(),
    ]);
    set(&mut settings.trust_domain, trust_domain.map(Into::into));
}

/// A configured socket is used, unless the variable `INPOD_ENABLED` decides otherwise.
fn node_agent(file: &File, env: &Environment) -> Option<NodeAgent> {
    let named = env
        .node_agent_socket
        .as_ref()
        .or(file.node_agent.socket.as_ref());
    env.node_agent
        .unwrap_or_else(|| named.is_some())
        .then(|| NodeAgent {
            socket: named.cloned().unwrap_or_else(|| NodeAgent::SOCKET.into()),
        })
}

fn listeners(settings: &mut Settings, file: &File, flags: &Overrides) {
    let of_file = |section: &ListenSection| section.address.map(|listen| listen.0);
    set(
        &mut settings.admin,
        flags.admin.or_else(|| of_file(&file.admin)),
    );
    set(
        &mut settings.metrics,
        flags.metrics.or_else(|| of_file(&file.metrics)),
    );
    set(
        &mut settings.readiness,
        flags.readiness.or_else(|| of_file(&file.readiness)),
    );
}

fn threads(file: &File, env: &Environment, flags: &Overrides) -> Result<NonZeroUsize, ConfigError> {
    let of_file = file
        .threads
        .map(|threads| {
            NonZeroUsize::new(threads).ok_or_else(|| check::out_of_range("threads", 0, 1, 256))
        })
        .transpose()?;
    let processors = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let two = NonZeroUsize::MIN.saturating_add(1);
    Ok(flags
        .threads
        .or(env.threads)
        .or(of_file)
        .unwrap_or_else(|| processors().min(two)))
}

fn capture(capture: &mut Capture, file: &CaptureSection, env: &Environment, flags: &Overrides) {
    set(&mut capture.by, env.capture_by.or(file.by));
    let directory = flags.bpf_directory.as_ref().or(file.bpf_directory.as_ref());
    set(&mut capture.bpf_directory, directory.cloned());
    capture.cgroup = env.cgroup.clone().or_else(|| file.cgroup.clone());
    set(&mut capture.mark, env.mark.or(file.mark));
    set(&mut capture.exempt_ports, file.exempt_ports.clone());
    let cidrs = |ranges: &Vec<Range>| ranges.iter().map(|range| range.0).collect();
    set(
        &mut capture.exempt_cidrs,
        file.exempt_cidrs.as_ref().map(cidrs),
    );
    set(
        &mut capture.exempt_sources,
        file.exempt_sources.as_ref().map(cidrs),
    );
}

fn dns(file: &DnsSection, env: &Environment) -> Option<Dns> {
    let mut dns = Dns::default();
    set(&mut dns.timeout, file.timeout.map(|span| span.0));
    env.dns.or(file.enabled).unwrap_or(true).then_some(dns)
}

fn fast_path(settings: &mut Settings, file: &File, env: &Environment) {
    let same_node = env.same_node.or(file.same_node);
    settings.same_node = same_node.unwrap_or(settings.same_node);
    let acceleration = env.acceleration.or(file.acceleration);
    settings.acceleration = acceleration.unwrap_or(settings.acceleration);
    let verdicts = env.verdicts.or(file.capture.verdicts);
    settings.capture.verdicts = verdicts.unwrap_or(settings.capture.verdicts);
    let overrides = file.overrides.iter().map(|entry| PathOverride {
        workload: Uid(entry.workload.as_str().into()),
        same_node: entry.same_node,
        acceleration: entry.acceleration,
    });
    settings.overrides = overrides.collect();
}

fn hbone(hbone: &mut Hbone, file: &HboneSection, env: &Environment) {
    let span = |span: Option<Span>| span.map(|span| span.0);
    set(
        &mut hbone.stream_window,
        env.stream_window.or(file.stream_window),
    );
    set(
        &mut hbone.connection_window,
        env.connection_window.or(file.connection_window),
    );
    set(&mut hbone.max_frame, env.max_frame.or(file.max_frame));
    set(&mut hbone.send_buffer, file.send_buffer);
    let max_streams = env.max_streams.or(file.max_streams_per_connection);
    set(&mut hbone.max_streams_per_connection, max_streams);
    set(
        &mut hbone.max_concurrent_streams,
        file.max_concurrent_streams,
    );
    set(&mut hbone.header_list_max, file.header_list_max);
    let idle_release = env.idle_release.or_else(|| span(file.idle_release));
    set(&mut hbone.idle_release, idle_release);
    // A server must keep a connection at least as long as the clients that pool it.
    hbone.server_idle = hbone.server_idle.max(hbone.idle_release.saturating_mul(2));
    set(&mut hbone.server_idle, span(file.server_idle));
    set(&mut hbone.connect_timeout, span(file.connect_timeout));
    set(&mut hbone.handshake_timeout, span(file.handshake_timeout));
    set(&mut hbone.response_timeout, span(file.response_timeout));
    set(&mut hbone.ping_interval, span(file.ping_interval));
    set(&mut hbone.ping_timeout, span(file.ping_timeout));
}

fn keepalive(file: &KeepaliveSection, env: &Environment) -> Option<Keepalive> {
    let mut keepalive = Keepalive::default();
    let span = |span: Option<Span>| span.map(|span| span.0);
    set(
        &mut keepalive.time,
        env.keepalive_time.or_else(|| span(file.time)),
    );
    set(
        &mut keepalive.interval,
        env.keepalive_interval.or_else(|| span(file.interval)),
    );
    set(
        &mut keepalive.retries,
        env.keepalive_retries.or(file.retries),
    );
    env.keepalive
        .or(file.enabled)
        .unwrap_or(true)
        .then_some(keepalive)
}

fn logging(settings: &mut Settings, file: &File, env: &Environment, flags: &Overrides) {
    let filter = first([
        flags.log_filter.as_ref(),
        env.log_filter.as_ref(),
        file.log.filter.as_ref(),
    ]);
    set(&mut settings.log.filter, filter.map(Into::into));
    set(
        &mut settings.log.format,
        flags.log_format.or(env.log_format).or(file.log.format),
    );
}

/// The deadline leaves a tenth of Kubernetes's grace period, and at least a second, for resetting
/// open connections and for the rest of the shutdown.
fn termination(settings: &Settings, file: &File, env: &Environment) -> Duration {
    const REST: Duration = Duration::from_secs(1);
    let wanted = env
        .termination_deadline
        .or_else(|| env.grace_period.map(|grace| grace.saturating_mul(9) / 10))
        .or_else(|| file.termination.deadline.map(|span| span.0))
        .unwrap_or(settings.termination_deadline);
    let most = env.grace_period.map(|grace| grace.saturating_sub(REST));
    most.map_or(wanted, |most| wanted.min(most))
}

/// The mesh: the keys of the settings file, the file that it or the environment names, and the
/// text of the environment, together.
fn mesh(
    file: File,
    env: &Environment,
    settings: &Settings,
    read: impl Fn(&Path) -> Result<String, ConfigError>,
) -> Result<LocalMesh, ConfigError> {
    let inline = Document {
        workloads: file.workloads,
        services: file.services,
        policies: file.policies,
        ..Document::default()
    };
    let mut documents = vec![inline];
    if let Some(path) = &settings.mesh_file {
        documents.push(Document::read_as(
            &path.display().to_string(),
            &read(path)?,
        )?);
    }
    if let Some(text) = &env.mesh_text {
        documents.push(Document::read_as("LOCAL_XDS", text)?);
    }
    Ok(LocalMesh::assemble(documents, &settings.trust_domain)?)
}
