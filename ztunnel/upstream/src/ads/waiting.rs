//! Open fetch requests by key, and the keys under which held resources were found.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use tokio::sync::oneshot;

use super::demand::FetchRequest;
use super::event::Answer;
use mesh::{Change, Fetched, NetworkAddress};

/// The most open keys.
const KEYS_MAX: usize = 4096;

/// Open fetch requests, and the keys under which held resources were found.
#[derive(Debug)]
pub(super) struct Waiting {
    open: HashMap<String, Vec<oneshot::Sender<Fetched>>>,
    /// The name of a held resource by other keys under which it was fetched. The control plane treats
    /// these keys as subscribed and does not answer for them again.
    found: HashMap<String, Arc<str>>,
    /// The same keys by the name of the resource.
    keys: HashMap<Arc<str>, Vec<String>>,
}

/// A resource of a response.
pub(super) struct ReceivedResource<'a> {
    pub(super) name: &'a str,
    pub(super) aliases: &'a [String],
    /// Its content; `None` if it was refused.
    pub(super) change: Option<&'a Change>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            open: HashMap::new(),
            found: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// Whether there is no request and no found key, so that resources need not be compared.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.found.is_empty()
    }

    /// Whether a held resource was found under a key.
    pub(super) fn has_found(&self, key: &str) -> bool {
        self.found.contains_key(key)
    }

    /// Takes a fetch up. True where the control plane has to be asked. Beyond the limit the
    /// fetch is dropped, which answers it.
    pub(super) fn ask(&mut self, fetch: FetchRequest) -> bool {
        let FetchRequest { key, answer } = fetch;
        if let Some(askers) = self.open.get_mut(&key) {
            askers.retain(|asker| !asker.is_closed());
            askers.push(answer);
            return false;
        }
        if self.open.len() >= KEYS_MAX {
            return false;
        }
        self.open.insert(key, vec![answer]);
        true
    }

    /// Near the limit, removes the keys that no task waits for any more.
    pub(super) fn make_room(&mut self) -> Vec<String> {
        if self.open.len() < KEYS_MAX {
            return Vec::new();
        }
        self.drop_abandoned()
    }

    /// The keys to subscribe to on a new stream.
    pub(super) fn resume(&mut self) -> impl Iterator<Item = &String> {
        drop(self.drop_abandoned());
        self.open.keys()
    }

    fn drop_abandoned(&mut self) -> Vec<String> {
        self.open
            .extract_if(|_, askers| askers.iter().all(oneshot::Sender::is_closed))
            .map(|(key, _)| key)
            .collect()
    }

    /// Answers the requests for a key.
    pub(super) fn answer(&mut self, key: &str, fetched: Fetched, answers: &mut Vec<Answer>) {
        let askers = self.open.remove(key).unwrap_or_default();
        answers.extend(askers.into_iter().map(|to| Answer { to, fetched }));
    }

    /// Answers the requests for a received resource by its name, aliases or addresses. Returns the
    /// keys under which it was found and that it no longer has.
    pub(super) fn received(
        &mut self,
        received: &ReceivedResource<'_>,
        answers: &mut Vec<Answer>,
    ) -> Vec<String> {
        if self.is_empty() {
            return Vec::new();
        }
        let fetched = if received.change.is_some() {
            Fetched::Found
        } else {
            Fetched::Unknown
        };
        self.answer(received.name, fetched, answers);
        let mut leads = received.change.map(addresses).unwrap_or_default();
        leads.extend_from_slice(received.aliases);
        for key in &leads {
            if !self.open.contains_key(key) {
                continue;
            }
            self.answer(key, fetched, answers);
            if received.change.is_some() && key != received.name {
                self.note(key, received.name);
            }
        }
        if received.change.is_none() {
            return Vec::new();
        }
        let Some(keys) = self.keys.get_mut(received.name) else {
            return Vec::new();
        };
        let lost: Vec<String> = keys.extract_if(.., |key| !leads.contains(key)).collect();
        for key in &lost {
            self.found.remove(key);
        }
        lost
    }

    fn note(&mut self, key: &str, name: &str) {
        let name: Arc<str> = name.into();
        if let Some(before) = self.found.insert(key.to_owned(), name.clone())
            && let Some(keys) = self.keys.get_mut(&before)
        {
            keys.retain(|other| other != key);
        }
        self.keys.entry(name).or_default().push(key.to_owned());
    }

    /// Forgets a key or a removed resource. Returns the keys under which the resource was found.
    pub(super) fn forget(&mut self, name: &str) -> Vec<String> {
        if let Some(resource) = self.found.remove(name)
            && let Some(keys) = self.keys.get_mut(&resource)
        {
            keys.retain(|key| key != name);
        }
        let keys = self.keys.remove(name).unwrap_or_default();
        for key in &keys {
            self.found.remove(key);
        }
        keys
    }
}

/// The address keys of a resource, which may be missing from its aliases.
fn addresses(change: &Change) -> Vec<String> {
    match change {
        Change::Workload(workload) => workload
            .workload_ips
            .iter()
            .map(|&address| {
                let network = workload.network.clone();
                NetworkAddress { network, address }.to_string()
            })
            .collect(),
        Change::Service(service) => service.vips.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}
