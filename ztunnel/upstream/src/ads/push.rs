//! Applies one response of the control plane: its changes, the resources that are refused, and the
//! fetch requests that it answers.
//!
//! Resources are decoded and handed on in slices, so that a push of a whole mesh does not block other
//! tasks of this thread. Removals come first: an address may have moved from a removed workload to a
//! new one.

use std::sync::Arc;

use foldhash::HashSet;
use tokio::sync::mpsc;

use super::config::Subscription;
use super::error::Error;
use super::event::{Answer, Batch, Event};
use super::known::{Known, digest_of};
use super::placeholder;
use super::resource::{ResourceError, Type, content, read};
use super::waiting::{ReceivedResource, Waiting};
use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use mesh::{Change, Fetched, Interner};

/// Resources in a batch.
const SLICE: usize = 512;
/// The most refusals of a response that are reported in detail.
const DETAILED_REFUSALS: usize = 32;

/// The state that outlives a stream.
pub(super) struct State {
    pub(super) trust_domain: String,
    pub(super) addresses: Holding,
    pub(super) policies: Holding,
    pub(super) waiting: Waiting,
    texts: Interner,
}

/// The state of one resource type.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) known: Known,
    /// Resources that are removed unless the first response of a new stream names them.
    unconfirmed: Unconfirmed,
    /// The names of resources with a placeholder in the mesh.
    pub(super) placeholders: HashSet<Arc<str>>,
    /// Whether a response has arrived.
    pub(super) answered: bool,
}

#[derive(Debug, Default)]
struct Unconfirmed {
    held: HashSet<Arc<str>>,
    placeholders: HashSet<Arc<str>>,
}

impl Holding {
    /// Prepares a new stream. `versions_sent` is false if the versions of the held resources did not
    /// fit in the request: then the control plane sends all resources again. Refused resources have no
    /// version, so with a full subscription they are sent again if they still exist.
    pub(super) fn begins(&mut self, versions_sent: bool, subscription: Subscription) {
        let mut unconfirmed = Unconfirmed::default();
        if !versions_sent {
            unconfirmed.held.extend(self.known.names().cloned());
        }
        if subscription == Subscription::Everything {
            unconfirmed
                .placeholders
                .extend(self.placeholders.iter().cloned());
        }
        self.unconfirmed = unconfirmed;
    }
}

/// The result of a response.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The number of refused resources.
    pub(super) refused: usize,
    /// The first refusals, with their reasons.
    pub(super) complaints: Vec<String>,
    /// Names and keys whose resource was removed.
    pub(super) gone: Vec<String>,
}

impl State {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            addresses: Holding::default(),
            policies: Holding::default(),
            waiting: Waiting::new(),
            texts: Interner::new(),
        }
    }

    pub(super) const fn holding(&mut self, kind: Type) -> &mut Holding {
        match kind {
            Type::Address => &mut self.addresses,
            Type::Authorization => &mut self.policies,
        }
    }

    /// Applies a response. Returns when all of its changes were handed on.
    pub(super) async fn take(
        &mut self,
        kind: Type,
        response: DeltaDiscoveryResponse,
        outlet: &mpsc::Sender<Event>,
    ) -> Result<Outcome, Error> {
        let DeltaDiscoveryResponse {
            resources,
            removed_resources: removed,
            ..
        } = response;
        let mut push = Push::new(self, kind);
        for (at, name) in removed.iter().enumerate() {
            push.remove_resource(name);
            push.pause(at, outlet).await?;
        }
        for (at, resource) in resources.into_iter().enumerate() {
            push.resource(&resource);
            push.pause(at, outlet).await?;
        }
        push.drop_unconfirmed();
        removed.iter().for_each(|name| push.answer_absent(name));
        push.finish(outlet).await
    }
}

struct Push<'a> {
    state: &'a mut State,
    kind: Type,
    unconfirmed: Unconfirmed,
    changes: Vec<Change>,
    answers: Vec<Answer>,
    outcome: Outcome,
    /// Whether changes of this push were handed on, so that its end has to be reported.
    handed_on: bool,
}

impl<'a> Push<'a> {
    fn new(state: &'a mut State, kind: Type) -> Self {
        Self {
            unconfirmed: std::mem::take(&mut state.holding(kind).unconfirmed),
            state,
            kind,
            changes: Vec::new(),
            answers: Vec::new(),
            outcome: Outcome::default(),
            handed_on: false,
        }
    }

    fn remove_resource(&mut self, name: &str) {
        let State {
            addresses,
            policies,
            texts,
            ..
        } = &mut *self.state;
        let known = match self.kind {
            Type::Address => &mut addresses.known,
            Type::Authorization => &mut policies.known,
        };
        self.changes.extend(known.release(name, texts));
        self.remove_placeholder(name);
    }

    /// Removes the placeholder of a resource.
    fn remove_placeholder(&mut self, name: &str) {
        if self.state.holding(self.kind).placeholders.remove(name) {
            self.changes.push(placeholder::removal(self.kind, name));
        }
    }

    /// Answers the requests for a removed name, unless the same response added it again.
    fn answer_absent(&mut self, name: &str) {
        if self.kind == Type::Address && !self.state.addresses.known.holds(name) {
            let waiting = &mut self.state.waiting;
            waiting.answer(name, Fetched::Absent, &mut self.answers);
            self.outcome.gone.extend(waiting.forget(name));
            self.outcome.gone.push(name.to_owned());
        }
    }

    fn drop_unconfirmed(&mut self) {
        let Unconfirmed { held, placeholders } = std::mem::take(&mut self.unconfirmed);
        for name in placeholders {
            self.remove_placeholder(&name);
        }
        for name in held {
            self.remove_resource(&name);
            self.answer_absent(&name);
        }
    }

    fn resource(&mut self, resource: &Resource) {
        self.unconfirmed.held.remove(&*resource.name);
        self.unconfirmed.placeholders.remove(&*resource.name);
        match self.read(resource) {
            Ok(change) => {
                match self.kind {
                    Type::Address => self.remove_placeholder(&resource.name),
                    // The policy replaces its placeholder.
                    Type::Authorization => {
                        self.state.policies.placeholders.remove(&*resource.name);
                    }
                }
                if let Some(change) = change {
                    self.answer_received(resource, Some(&change));
                    self.changes.push(change);
                }
            }
            Err(error) => {
                self.refuse(resource, &error);
                self.add_placeholder(resource);
                self.answer_received(resource, None);
            }
        }
    }

    /// The change, or `None` if the resource is unchanged.
    fn read(&mut self, resource: &Resource) -> Result<Option<Change>, ResourceError> {
        let content = content(self.kind, resource)?;
        let digest = digest_of(content);
        let State {
            addresses,
            policies,
            texts,
            trust_domain,
            waiting,
            ..
        } = &mut *self.state;
        let known = match self.kind {
            Type::Address => &mut addresses.known,
            Type::Authorization => &mut policies.known,
        };
        let (name, version) = (&resource.name, &resource.version);
        let same = known.is_same(name, version, &digest, texts);
        // A request may be for an address, which only the content names.
        if same && (waiting.is_empty() || self.kind == Type::Authorization) {
            return Ok(None);
        }
        let doubt = |doubt: &str| tracing::warn!(policy = %name.escape_debug(), "{doubt}");
        let change = read(self.kind, name, content, trust_domain, texts, doubt)?;
        if same {
            self.answer_received(resource, Some(&change));
            return Ok(None);
        }
        let before = known.hold(name, version, digest, &change, texts);
        self.changes.extend(before);
        Ok(Some(change))
    }

    fn answer_received(&mut self, resource: &Resource, change: Option<&Change>) {
        if self.kind == Type::Address {
            let received = ReceivedResource {
                name: &resource.name,
                aliases: &resource.aliases,
                change,
            };
            let lost = self.state.waiting.received(&received, &mut self.answers);
            self.outcome.gone.extend(lost);
        }
    }

    fn refuse(&mut self, resource: &Resource, error: &ResourceError) {
        self.outcome.refused += 1;
        if self.outcome.complaints.len() >= DETAILED_REFUSALS {
            return;
        }
        let name: String = resource.name.chars().take(256).collect();
        tracing::warn!(
            resource = %name.escape_debug(),
            reason = error.reason(),
            fault = error.fault().as_str(),
            "refused: {error}"
        );
        self.outcome.complaints.push(format!("{name}: {error}"));
    }

    /// A resource that cannot be decoded must not be treated as missing. The last good version of a
    /// policy stays enforced. A workload or service stays as it was, and its new addresses get a
    /// placeholder.
    fn add_placeholder(&mut self, resource: &Resource) {
        let holding = self.state.holding(self.kind);
        if self.kind == Type::Authorization && holding.known.holds(&resource.name) {
            return;
        }
        if let Some(change) = placeholder::of(self.kind, resource) {
            holding.placeholders.insert(resource.name.as_str().into());
            self.changes.push(change);
        }
    }

    /// After every slice: hands on the changes and lets other tasks run.
    async fn pause(&mut self, at: usize, outlet: &mpsc::Sender<Event>) -> Result<(), Error> {
        if (at + 1).is_multiple_of(SLICE) {
            self.hand_on(false, outlet).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn finish(mut self, outlet: &mpsc::Sender<Event>) -> Result<Outcome, Error> {
        self.hand_on(true, outlet).await?;
        Ok(self.outcome)
    }

    async fn hand_on(&mut self, last: bool, outlet: &mpsc::Sender<Event>) -> Result<(), Error> {
        let changes = std::mem::take(&mut self.changes);
        let answers = std::mem::take(&mut self.answers);
        self.handed_on |= !changes.is_empty();
        let batch = Batch::new(changes, last, answers);
        if batch.is_idle() && !(last && self.handed_on) {
            return Ok(());
        }
        let sent = outlet.send(Event::Changes(batch)).await;
        sent.map_err(|_closed| Error::Abandoned)
    }
}
