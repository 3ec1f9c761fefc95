//! What the control plane tells: named resources, which change while proxies listen.

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

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Resource {
    Workload(Box<workload::Workload>),
    Service(Box<workload::Service>),
    Policy(Box<security::Authorization>),
    /// Bytes that are no resource, under a name of the address type.
    Garbage(String, Vec<u8>),
}

impl Resource {
    /// The type and the name that it is told under.
    #[must_use]
    pub fn key(&self) -> (&'static str, String) {
        match self {
            Self::Workload(it) => (ADDRESS, it.uid.clone()),
            Self::Service(it) => (ADDRESS, format!("{}/{}", it.namespace, it.hostname)),
            Self::Policy(it) => (AUTHORIZATION, format!("{}/{}", it.namespace, it.name)),
            Self::Garbage(name, _) => (ADDRESS, name.clone()),
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
            Self::Policy(_) | Self::Garbage(..) => Vec::new(),
        }
    }

    fn backs(&self) -> Vec<String> {
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
            Self::Garbage(_, bytes) => bytes.clone(),
        }
    }
}

/// A resource as it is told: its bytes and when they changed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) bytes: Vec<u8>,
    pub(super) version: u64,
    /// Other keys that lead to it: `network/ip`.
    pub(super) aliases: Vec<String>,
    /// The services that it backs.
    pub(super) backs: Vec<String>,
}

impl Told {
    pub(super) const fn nothing() -> Self {
        Self {
            bytes: Vec::new(),
            version: 0,
            aliases: Vec::new(),
            backs: Vec::new(),
        }
    }
}

/// How single questions are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Manner {
    /// At once.
    #[default]
    Prompt,
    /// After a while.
    Slow(Duration),
    /// Never.
    Silent,
}

type Resources = BTreeMap<(&'static str, String), Told>;

/// What is told, shared by all the servers of a control plane. Clones share everything.
#[derive(Debug, Clone)]
pub struct State {
    resources: Arc<Mutex<Resources>>,
    version: watch::Sender<u64>,
    refusals: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
    manner: Arc<Mutex<Manner>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            resources: Arc::default(),
            version: watch::Sender::new(0),
            refusals: Arc::default(),
            asked: Arc::default(),
            manner: Arc::default(),
        }
    }
}

impl State {
    /// Tells a resource, or tells it anew.
    pub fn put(&self, resource: &Resource) {
        self.change(|resources, version| {
            let told = Told {
                bytes: resource.bytes(),
                version,
                aliases: resource.aliases(),
                backs: resource.backs(),
            };
            resources.insert(resource.key(), told);
        });
    }

    /// Takes a resource back.
    pub fn remove(&self, resource: &Resource) {
        self.change(|resources, _| {
            resources.remove(&resource.key());
        });
    }

    /// What proxies have refused, as they said it.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.refusals).clone()
    }

    /// What proxies that do not want everything have asked for, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    /// How single questions are answered from now on.
    pub fn answer(&self, manner: Manner) {
        *lock(&self.manner) = manner;
    }

    pub(super) fn hear(&self, names: &[String]) -> Manner {
        lock(&self.asked).extend_from_slice(names);
        *lock(&self.manner)
    }

    pub(super) fn refused(&self, why: String) {
        lock(&self.refusals).push(why);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// All resources of a type by name.
    pub(super) fn of_type(&self, kind: &str) -> BTreeMap<String, Told> {
        let resources = lock(&self.resources);
        let of_type = resources.iter().filter(|((of, _), _)| *of == kind);
        of_type
            .map(|((_, name), told)| (name.clone(), told.clone()))
            .collect()
    }

    fn change(&self, how: impl FnOnce(&mut Resources, u64)) {
        let mut resources = lock(&self.resources);
        self.version.send_modify(|version| {
            *version += 1;
            how(&mut resources, *version);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
