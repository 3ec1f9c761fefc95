//! Pending fetch requests by key, and the keys under which held resources were found.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use tokio::sync::oneshot;

use super::event::Answer;
use super::on_demand::FetchRequest;
use mesh::{Change, FetchOutcome, NetworkAddress};

/// The largest number of pending keys.
const KEYS_MAX: usize = 4096;

/// Pending fetch requests, and the keys under which held resources were found.
#[derive(Debug)]
pub(super) struct PendingFetches {
    requesters: HashMap<String, Vec<oneshot::Sender<FetchOutcome>>>,
    /// From each other key under which a held resource was fetched to the resource's name. The control
    /// plane treats these keys as subscribed and does not answer for them again.
    name_by_key: HashMap<String, Arc<str>>,
    /// The reverse of `name_by_key`.
    keys_by_name: HashMap<Arc<str>, Vec<String>>,
}

/// What [`PendingFetches::add`] did with a fetch request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// The key is new: the caller has to subscribe to it.
    NewKey,
    /// The request waits for the answer to an earlier request of the key.
    PendingKey,
    /// Too many keys are pending. The request was dropped, which answers it.
    Dropped,
}

/// A resource of a response.
pub(super) struct ReceivedResource<'a> {
    pub(super) name: &'a str,
    pub(super) aliases: &'a [String],
    /// Its content; `None` if it was refused.
    pub(super) change: Option<&'a Change>,
}

impl PendingFetches {
    pub(super) fn new() -> Self {
        Self {
            requesters: HashMap::new(),
            name_by_key: HashMap::new(),
            keys_by_name: HashMap::new(),
        }
    }

    /// Whether no request is pending and no key was recorded, so that resources need not be compared.
    pub(super) fn is_empty(&self) -> bool {
        self.requesters.is_empty() && self.name_by_key.is_empty()
    }

    /// Whether a held resource was found under a key.
    pub(super) fn has_found(&self, key: &str) -> bool {
        self.name_by_key.contains_key(key)
    }

    /// Adds a fetch request, unless [`KEYS_MAX`] keys are pending.
    pub(super) fn add(&mut self, fetch: FetchRequest) -> Added {
        let FetchRequest { key, answer } = fetch;
        if let Some(requesters) = self.requesters.get_mut(&key) {
            requesters.retain(|requester| !requester.is_closed());
            requesters.push(answer);
            return Added::PendingKey;
        }
        if self.requesters.len() >= KEYS_MAX {
            return Added::Dropped;
        }
        self.requesters.insert(key, vec![answer]);
        Added::NewKey
    }

    /// At the limit, removes and returns the keys whose requesters have given up.
    pub(super) fn evict_abandoned(&mut self) -> Vec<String> {
        if self.requesters.len() < KEYS_MAX {
            return Vec::new();
        }
        self.remove_abandoned()
    }

    /// The keys to subscribe to on a new stream.
    pub(super) fn keys_to_subscribe(&mut self) -> impl Iterator<Item = &String> {
        drop(self.remove_abandoned());
        self.requesters.keys()
    }

    fn remove_abandoned(&mut self) -> Vec<String> {
        self.requesters
            .extract_if(|_, requesters| requesters.iter().all(oneshot::Sender::is_closed))
            .map(|(key, _)| key)
            .collect()
    }

    /// Answers the requests for a key.
    pub(super) fn answer(&mut self, key: &str, outcome: FetchOutcome, answers: &mut Vec<Answer>) {
        let requesters = self.requesters.remove(key).unwrap_or_default();
        let answer = |requester| Answer { requester, outcome };
        answers.extend(requesters.into_iter().map(answer));
    }

    /// Answers the requests for a received resource by its name, aliases or addresses. Returns the
    /// keys under which the resource was found and that it no longer has.
    pub(super) fn answer_received(
        &mut self,
        received: &ReceivedResource<'_>,
        answers: &mut Vec<Answer>,
    ) -> Vec<String> {
        if self.is_empty() {
            return Vec::new();
        }
        let outcome = if received.change.is_some() {
            FetchOutcome::Found
        } else {
            FetchOutcome::Unknown
        };
        self.answer(received.name, outcome, answers);
        let mut current = received.change.map(addresses).unwrap_or_default();
        current.extend_from_slice(received.aliases);
        for key in &current {
            if !self.requesters.contains_key(key) {
                continue;
            }
            self.answer(key, outcome, answers);
            if received.change.is_some() && key != received.name {
                self.record_key(key, received.name);
            }
        }
        if received.change.is_none() {
            return Vec::new();
        }
        let Some(keys) = self.keys_by_name.get_mut(received.name) else {
            return Vec::new();
        };
        let stale: Vec<String> = keys.extract_if(.., |key| !current.contains(key)).collect();
        for key in &stale {
            self.name_by_key.remove(key);
        }
        stale
    }

    fn record_key(&mut self, key: &str, name: &str) {
        let name: Arc<str> = name.into();
        if let Some(previous) = self.name_by_key.insert(key.to_owned(), name.clone())
            && let Some(keys) = self.keys_by_name.get_mut(&previous)
        {
            keys.retain(|other| other != key);
        }
        self.keys_by_name
            .entry(name)
            .or_default()
            .push(key.to_owned());
    }

    /// Forgets a key or a removed resource. Returns the keys under which the resource was found.
    pub(super) fn forget(&mut self, name: &str) -> Vec<String> {
        if let Some(resource) = self.name_by_key.remove(name)
            && let Some(keys) = self.keys_by_name.get_mut(&resource)
        {
            keys.retain(|key| key != name);
        }
        let keys = self.keys_by_name.remove(name).unwrap_or_default();
        for key in &keys {
            self.name_by_key.remove(key);
        }
        keys
    }
}

/// The keys of a resource's addresses, which may be missing from its aliases.
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
