//! What the control plane tells: named resources, which change while proxies listen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use tokio::sync::watch;

use super::proto::istio::{security, workload};

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
}

type Resources = BTreeMap<(&'static str, String), Told>;

/// What is told, shared by all the servers of a control plane. Clones share everything.
#[derive(Debug, Clone)]
pub struct State {
    resources: Arc<Mutex<Resources>>,
    version: watch::Sender<u64>,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            resources: Arc::default(),
            version: watch::Sender::new(0),
            refusals: Arc::default(),
        }
    }
}

impl State {
    /// Tells a resource, or tells it anew.
    pub fn put(&self, resource: &Resource) {
        self.change(|resources, version| {
            let bytes = resource.bytes();
            resources.insert(resource.key(), Told { bytes, version });
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
