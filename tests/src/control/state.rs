//! The resources of the control plane, which tests change while proxies are subscribed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::watch;

use api::istio::{security, workload};

/// The type of workloads and services.
pub(super) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// The type of policies.
pub(super) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// A resource.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names describe the variants")]
pub enum Resource {
    Workload(Box<workload::Workload>),
    Service(Box<workload::Service>),
    Policy(Box<security::Authorization>),
    /// Bytes that cannot be decoded, with a name, of the address type.
    Invalid(String, Vec<u8>),
}

impl Resource {
    /// The type and the name of the resource.
    #[must_use]
    pub fn key(&self) -> (&'static str, String) {
        match self {
            Self::Workload(it) => (ADDRESS, it.uid.clone()),
            Self::Service(it) => (ADDRESS, format!("{}/{}", it.namespace, it.hostname)),
            Self::Policy(it) => (AUTHORIZATION, format!("{}/{}", it.namespace, it.name)),
            Self::Invalid(name, _) => (ADDRESS, name.clone()),
        }
    }

    fn aliases(&self) -> Vec<String> {
        let alias = |network: &str, bytes: &[u8]| {
            let octets = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = octets.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            address.ok().map(|address| format!("{network}/{address}"))
        };
        match self {
            Self::Workload(it) => {
                let addresses = it.addresses.iter();
                addresses
                    .filter_map(|address| alias(&it.network, address))
                    .collect()
            }
            Self::Service(it) => {
                let addresses = it.addresses.iter();
                addresses
                    .filter_map(|at| alias(&at.network, &at.address))
                    .collect()
            }
            Self::Policy(_) | Self::Invalid(..) => Vec::new(),
        }
    }

    fn services(&self) -> Vec<String> {
        match self {
            Self::Workload(it) => it.services.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        use workload::address::Type;
        let address = |it| workload::Address { r#type: Some(it) }.encode_to_vec();
        match self {
            Self::Workload(it) => address(Type::Workload((**it).clone())),
            Self::Service(it) => address(Type::Service((**it).clone())),
            Self::Policy(it) => it.encode_to_vec(),
            Self::Invalid(_, bytes) => bytes.clone(),
        }
    }
}

/// An encoded resource and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VersionedResource {
    pub(super) bytes: Vec<u8>,
    pub(super) version: u64,
    /// Other names of the resource: `network/ip`.
    pub(super) aliases: Vec<String>,
    /// The services of which the workload is a backend.
    pub(super) services: Vec<String>,
}

impl VersionedResource {
    /// A version that differs from every current one.
    pub(super) const fn outdated() -> Self {
        Self {
            bytes: Vec::new(),
            version: 0,
            aliases: Vec::new(),
            services: Vec::new(),
        }
    }
}

/// The time of the answers to on-demand subscriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AnswerMode {
    /// At once.
    #[default]
    Immediate,
    /// After a delay.
    Delayed(Duration),
    /// No answer.
    Never,
}

type Resources = BTreeMap<(&'static str, String), VersionedResource>;

/// The resources, shared by all servers of a control plane. Clones share one state.
#[derive(Debug, Clone)]
pub struct State {
    resources: Arc<Mutex<Resources>>,
    version: watch::Sender<u64>,
    refusals: Arc<Mutex<Vec<String>>>,
    fetched: Arc<Mutex<Vec<String>>>,
    answer_mode: Arc<Mutex<AnswerMode>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            resources: Arc::default(),
            version: watch::Sender::new(0),
            refusals: Arc::default(),
            fetched: Arc::default(),
            answer_mode: Arc::default(),
        }
    }
}

impl State {
    /// Adds or replaces a resource.
    pub fn put(&self, resource: &Resource) {
        self.change(|resources, version| {
            let versioned = VersionedResource {
                bytes: resource.bytes(),
                version,
                aliases: resource.aliases(),
                services: resource.services(),
            };
            resources.insert(resource.key(), versioned);
        });
    }

    /// Removes a resource.
    pub fn remove(&self, resource: &Resource) {
        self.change(|resources, _| {
            resources.remove(&resource.key());
        });
    }

    /// The messages of all refused responses.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.refusals).clone()
    }

    /// The names in all on-demand subscriptions, in order.
    #[must_use]
    pub fn fetched(&self) -> Vec<String> {
        lock(&self.fetched).clone()
    }

    /// Sets the time of the answers to on-demand subscriptions.
    pub fn set_answer_mode(&self, answer_mode: AnswerMode) {
        *lock(&self.answer_mode) = answer_mode;
    }

    pub(super) fn record_fetch(&self, names: &[String]) -> AnswerMode {
        lock(&self.fetched).extend_from_slice(names);
        *lock(&self.answer_mode)
    }

    pub(super) fn record_refusal(&self, message: String) {
        lock(&self.refusals).push(message);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// All resources of a type by name.
    pub(super) fn of_type(&self, kind: &str) -> BTreeMap<String, VersionedResource> {
        let resources = lock(&self.resources);
        let of_type = resources.iter().filter(|((of, _), _)| *of == kind);
        of_type
            .map(|((_, name), resource)| (name.clone(), resource.clone()))
            .collect()
    }

    fn change(&self, change: impl FnOnce(&mut Resources, u64)) {
        let mut resources = lock(&self.resources);
        self.version.send_modify(|version| {
            *version += 1;
            change(&mut resources, *version);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
