//! A mesh: a proxy on each node, a workload for each pod, and a service for each pod.
//!
//! Pod 1 of node `a` is the workload `a-1` with the service account `a-1`, behind the service
//! `a-1.default.svc.cluster.local`. The service's port 80 maps to the pod's port 8080; its other ports
//! map to the same ports. Service addresses are 10.96.N.P and fd96::N:P.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Proxy;
use super::settings::{
    Address, Authority, Capture, LocalAuthority, Log, PodEntry, Policy, Service, Settings, Workload,
};
use crate::net::{Family, Host, Node, World};

const CLUSTER: &str = "cluster1";
/// The ports of every service, with their target ports.
const PORTS: [(u16, u16); 4] = [(80, 8080), (8080, 8080), (9000, 9000), (9001, 9001)];

/// The uid of a pod's workload.
#[must_use]
pub fn workload_uid(pod: &Host) -> String {
    format!("{CLUSTER}//v1/Pod/default/{}", pod.name)
}

/// The SPIFFE identity of a pod.
#[must_use]
pub fn identity(pod: &Host) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{}", pod.name)
}

/// The host name of the service in front of a pod.
#[must_use]
pub fn service_hostname(pod: &Host) -> String {
    format!("{}.default.svc.cluster.local", pod.name)
}

/// The addresses of the service in front of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say which family")]
pub struct ServiceAddress {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl ServiceAddress {
    fn of(pod: &Host) -> Self {
        let [_, _, node, number] = pod.v4.octets();
        Self {
            v4: Ipv4Addr::new(10, 96, node, number),
            v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, u16::from(node), u16::from(number)),
        }
    }

    /// A socket address of the service.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        let address: IpAddr = match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        };
        SocketAddr::new(address, port)
    }
}

type Adjust<'world> = Box<dyn FnMut(&mut Settings) + 'world>;

/// The parameters of a mesh.
pub struct MeshBuilder<'world> {
    world: &'world World,
    outsiders: Vec<String>,
    environment: BTreeMap<String, String>,
    resolver: Option<IpAddr>,
    adjust: Vec<Adjust<'world>>,
}

impl<'world> MeshBuilder<'world> {
    /// Excludes a pod: it is not a workload and is not captured.
    #[must_use]
    pub fn without(mut self, pod: &Host) -> Self {
        self.outsiders.push(pod.name.clone());
        self
    }

    /// Adds a policy on every node.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Self {
        self.settings(move |settings| settings.policies.push(policy.clone()))
    }

    /// Changes the settings of every node before the proxies start.
    #[must_use]
    pub fn settings(mut self, adjust: impl FnMut(&mut Settings) + 'world) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Sets an environment variable of every proxy.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the DNS resolver in the resolv.conf of every proxy.
    #[must_use]
    pub fn resolver(mut self, resolver: IpAddr) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Starts the proxies and waits until they are ready.
    ///
    /// # Errors
    /// When the proxy was not built, or one does not become ready.
    pub fn start(self) -> Result<Mesh<'world>> {
        let mut mesh = self.prepare()?;
        for proxy in &mut mesh.proxies {
            proxy.launch()?;
        }
        for proxy in &mut mesh.proxies {
            proxy.wait_ready()?;
        }
        Ok(mesh)
    }

    /// Like [`Self::start`], but does not start the proxies: see [`Proxy::start`].
    ///
    /// # Errors
    /// When a directory cannot be created.
    pub fn prepare(mut self) -> Result<Mesh<'world>> {
        let mut proxies = Vec::new();
        for node in self.world.nodes() {
            let directory = self.world.directory().join(format!("node-{}", node.name()));
            let mut settings = self.base(node, &directory);
            for adjust in &mut self.adjust {
                adjust(&mut settings);
            }
            let environment = self.environment.clone();
            let mut proxy = Proxy::prepare(node, directory, settings, environment)?;
            proxy.resolver = self.resolver;
            proxies.push(proxy);
        }
        Ok(Mesh {
            world: self.world,
            proxies,
        })
    }

    fn members(&self, node: &'world Node) -> impl Iterator<Item = &'world Host> {
        node.pods
            .iter()
            .filter(|pod| !self.outsiders.contains(&pod.name))
    }

    fn base(&self, node: &'world Node, directory: &Path) -> Settings {
        let all_pods = || {
            self.world
                .nodes()
                .iter()
                .flat_map(|node| self.members(node).map(move |pod| (node, pod)))
        };
        Settings {
            node: node.name().to_owned(),
            cluster_id: CLUSTER.to_owned(),
            pods: self
                .members(node)
                .map(|pod| PodEntry {
                    workload: workload_uid(pod),
                    netns: pod.namespace.path().to_owned(),
                })
                .collect(),
            workloads: all_pods().map(|(node, pod)| workload(node, pod)).collect(),
            services: all_pods().map(|(_, pod)| service(pod)).collect(),
            policies: Vec::new(),
            ca: Some(Authority {
                local: LocalAuthority {
                    directory: self.world.directory().join("ca"),
                    leaf_ttl: None,
                },
            }),
            admin: Address {
                address: "127.0.0.1:15000".to_owned(),
            },
            metrics: Address {
                address: "[::]:15020".to_owned(),
            },
            readiness: Address {
                address: "[::]:15021".to_owned(),
            },
            capture: Capture {
                bpf_directory: directory.join("bpf"),
                extra: BTreeMap::new(),
            },
            log: Log {
                filter: "info".to_owned(),
                format: "text".to_owned(),
            },
            extra: BTreeMap::new(),
        }
    }
}

fn workload(node: &Node, pod: &Host) -> Workload {
    let service = format!("default/{}", service_hostname(pod));
    Workload {
        uid: workload_uid(pod),
        name: pod.name.clone(),
        namespace: "default".to_owned(),
        service_account: pod.name.clone(),
        workload_ips: vec![pod.v4.into(), pod.v6.into()],
        protocol: "HBONE".to_owned(),
        node: node.name().to_owned(),
        services: BTreeMap::from([(service, BTreeMap::from(PORTS))]),
        authorization_policies: Vec::new(),
        extra: BTreeMap::from([("clusterId".to_owned(), json!(CLUSTER))]),
    }
}

fn service(pod: &Host) -> Service {
    let address = ServiceAddress::of(pod);
    Service {
        name: pod.name.clone(),
        namespace: "default".to_owned(),
        hostname: service_hostname(pod),
        vips: vec![format!("/{}", address.v4), format!("/{}", address.v6)],
        ports: BTreeMap::from(PORTS),
        extra: BTreeMap::new(),
    }
}

/// The proxies of a world.
pub struct Mesh<'world> {
    world: &'world World,
    proxies: Vec<Proxy<'world>>,
}

impl<'world> Mesh<'world> {
    /// Starts a proxy on every node, with every pod in the mesh.
    ///
    /// # Errors
    /// As [`MeshBuilder::start`].
    pub fn start(world: &'world World) -> Result<Self> {
        Self::builder(world).start()
    }

    /// A builder for a mesh with every pod.
    #[must_use]
    pub fn builder(world: &'world World) -> MeshBuilder<'world> {
        MeshBuilder {
            world,
            outsiders: Vec::new(),
            environment: BTreeMap::new(),
            resolver: None,
            adjust: Vec::new(),
        }
    }

    /// The proxy of a node.
    ///
    /// # Panics
    /// When the node does not exist.
    pub fn proxy(&mut self, node: &str) -> &mut Proxy<'world> {
        match self
            .proxies
            .iter_mut()
            .find(|proxy| proxy.node().name() == node)
        {
            Some(proxy) => proxy,
            None => panic!("the mesh has no node {node}"),
        }
    }

    /// All proxies.
    pub fn proxies(&mut self) -> &mut [Proxy<'world>] {
        &mut self.proxies
    }

    /// The world of the mesh.
    #[must_use]
    pub fn world(&self) -> &'world World {
        self.world
    }

    /// The address of the service in front of a pod.
    #[must_use]
    pub fn service(pod: &Host) -> ServiceAddress {
        ServiceAddress::of(pod)
    }

    /// Changes the settings of every node and writes their files; running proxies reload them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn change(&mut self, mut adjust: impl FnMut(&mut Settings)) -> Result<()> {
        for proxy in &mut self.proxies {
            adjust(&mut proxy.settings);
            proxy
                .write_settings()
                .context("changing a node's settings")?;
        }
        Ok(())
    }

    /// The pids of all proxies.
    ///
    /// # Errors
    /// When a proxy is not running.
    pub fn pids(&self) -> Result<Vec<u32>> {
        self.proxies.iter().map(Proxy::pid).collect()
    }

    /// Leaves the proxies running after the harness has ended.
    pub fn leak(self) {
        for proxy in self.proxies {
            proxy.leak();
        }
    }
}
