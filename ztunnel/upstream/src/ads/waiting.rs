//! Who waits for which key, and which keys have led to a resource that is held.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use tokio::sync::oneshot;

use super::demand::Question;
use super::event::Answer;
use mesh::{Change, Fetched, NetworkAddress};

/// Keys that may be unanswered at one time.
const KEYS_MAX: usize = 4096;

/// Who waits for which key.
#[derive(Debug)]
pub(super) struct Waiting {
    open: HashMap<String, Vec<oneshot::Sender<Fetched>>>,
    /// Keys other than its name under which a resource that is held was asked for. The control
    /// plane takes them for subscribed, and would not answer a second time.
    found: HashMap<String, Arc<str>>,
    /// The same by the resource's name.
    keys: HashMap<Arc<str>, Vec<String>>,
}

/// A resource that has come.
pub(super) struct Arrival<'a> {
    pub(super) name: &'a str,
    pub(super) aliases: &'a [String],
    /// What is in it; `None` for one that was refused.
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

    /// Whether nobody has asked for anything, so that what comes need not be compared.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.found.is_empty()
    }

    /// Whether a key has led to a resource that is held.
    pub(super) fn has_found(&self, key: &str) -> bool {
        self.found.contains_key(key)
    }

    /// Takes a question up. True where the control plane has to be asked. Beyond the limit the
    /// question is dropped, which answers it.
    pub(super) fn ask(&mut self, question: Question) -> bool {
        let Question { key, answer } = question;
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

    /// Where the limit is near: takes out the keys for which nobody waits any more.
    pub(super) fn make_room(&mut self) -> Vec<String> {
        if self.open.len() < KEYS_MAX {
            return Vec::new();
        }
        self.drop_abandoned()
    }

    /// The keys that have to be asked for on a new stream.
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

    /// Whoever waits for this key.
    pub(super) fn answer(&mut self, key: &str, fetched: Fetched, answers: &mut Vec<Answer>) {
        let askers = self.open.remove(key).unwrap_or_default();
        answers.extend(askers.into_iter().map(|to| Answer { to, fetched }));
    }

    /// Answers whoever waits for a resource that has come, by its name, its aliases or its
    /// addresses. Returns keys that used to lead to it and no longer do.
    pub(super) fn came(&mut self, came: &Arrival<'_>, answers: &mut Vec<Answer>) -> Vec<String> {
        if self.is_empty() {
            return Vec::new();
        }
        let fetched = if came.change.is_some() {
            Fetched::Found
        } else {
            Fetched::Unknown
        };
        self.answer(came.name, fetched, answers);
        let mut leads = came.change.map(addresses).unwrap_or_default();
        leads.extend_from_slice(came.aliases);
        for key in &leads {
            if !self.open.contains_key(key) {
                continue;
            }
            self.answer(key, fetched, answers);
            if came.change.is_some() && key != came.name {
                self.note(key, came.name);
            }
        }
        if came.change.is_none() {
            return Vec::new();
        }
        let Some(keys) = self.keys.get_mut(came.name) else {
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

    /// A key, or a resource's name, leads nowhere now. Returns the keys that led to the resource.
    pub(super) fn left(&mut self, name: &str) -> Vec<String> {
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

/// The keys under which a resource may be asked for, were they not among its aliases.
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
