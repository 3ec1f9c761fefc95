//! Applies one response of the control plane: its changes, the resources that are refused, and the
//! fetch requests that it answers.
//!
//! Resources are decoded and sent in batches, so that a push of a whole mesh does not block the other
//! tasks of this thread. Removals come first: an address may have moved from a removed workload to a
//! new one.

use std::sync::Arc;

use foldhash::HashSet;
use tokio::sync::mpsc;

use super::config::Subscription;
use super::error::Error;
use super::event::{Answer, Batch, Event};
use super::held_resources::{HeldResources, digest_of};
use super::pending_fetches::{PendingFetches, ReceivedResource};
use super::placeholder;
use super::resource::{ResourceError, Type, content, decode};
use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use mesh::{Change, FetchOutcome, Interner};

/// The number of resources in a batch.
const BATCH_SIZE: usize = 512;
/// The most refusals of a response that are reported in detail.
const DETAILED_REFUSALS: usize = 32;

/// The state that outlives a stream.
pub(super) struct State {
    pub(super) trust_domain: String,
    pub(super) addresses: TypeState,
    pub(super) policies: TypeState,
    pub(super) pending: PendingFetches,
    texts: Interner,
}

/// The state of one resource type.
#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) held: HeldResources,
    /// Resources that are removed unless the first response of a new stream contains them.
    unconfirmed: Unconfirmed,
    /// The names of resources with a placeholder in the mesh.
    pub(super) placeholders: HashSet<Arc<str>>,
    /// Whether a response has arrived.
    pub(super) received: bool,
}

#[derive(Debug, Default)]
struct Unconfirmed {
    held: HashSet<Arc<str>>,
    placeholders: HashSet<Arc<str>>,
}

impl TypeState {
    /// Prepares a new stream. `versions_sent` is false if the versions of the held resources did not
    /// fit in the request: then the control plane sends all resources again. Refused resources have no
    /// version, so with a full subscription they are sent again if they still exist.
    pub(super) fn begin_stream(&mut self, versions_sent: bool, subscription: Subscription) {
        let mut unconfirmed = Unconfirmed::default();
        if !versions_sent {
            unconfirmed.held.extend(self.held.names().cloned());
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
pub(super) struct PushOutcome {
    /// The number of refused resources.
    pub(super) refused: usize,
    /// The first refusals, with their reasons.
    pub(super) refusals: Vec<String>,
    /// Names and keys whose resource was removed; the client unsubscribes from them.
    pub(super) removed_keys: Vec<String>,
}

impl State {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            addresses: TypeState::default(),
            policies: TypeState::default(),
            pending: PendingFetches::new(),
            texts: Interner::new(),
        }
    }

    pub(super) const fn type_state(&mut self, kind: Type) -> &mut TypeState {
        match kind {
            Type::Address => &mut self.addresses,
            Type::Authorization => &mut self.policies,
        }
    }

    /// Applies a response. Returns when all of its changes were sent.
    pub(super) async fn apply(
        &mut self,
        kind: Type,
        response: DeltaDiscoveryResponse,
        events: &mpsc::Sender<Event>,
    ) -> Result<PushOutcome, Error> {
        let DeltaDiscoveryResponse {
            resources,
            removed_resources: removed,
            ..
        } = response;
        let mut push = Push::new(self, kind);
        for (at, name) in removed.iter().enumerate() {
            push.remove_resource(name);
            push.yield_after_batch(at, events).await?;
        }
        for (at, resource) in resources.into_iter().enumerate() {
            push.apply_resource(&resource);
            push.yield_after_batch(at, events).await?;
        }
        push.remove_unconfirmed();
        removed.iter().for_each(|name| push.answer_absent(name));
        push.finish(events).await
    }
}

struct Push<'a> {
    state: &'a mut State,
    kind: Type,
    unconfirmed: Unconfirmed,
    changes: Vec<Change>,
    answers: Vec<Answer>,
    outcome: PushOutcome,
    /// Whether a batch with changes was sent, so that the end of the push has to be sent, too.
    sent_changes: bool,
}

impl<'a> Push<'a> {
    fn new(state: &'a mut State, kind: Type) -> Self {
        Self {
            unconfirmed: std::mem::take(&mut state.type_state(kind).unconfirmed),
            state,
            kind,
            changes: Vec::new(),
            answers: Vec::new(),
            outcome: PushOutcome::default(),
            sent_changes: false,
        }
    }

    fn remove_resource(&mut self, name: &str) {
        let State {
            addresses,
            policies,
            texts,
            ..
        } = &mut *self.state;
        let held = match self.kind {
            Type::Address => &mut addresses.held,
            Type::Authorization => &mut policies.held,
        };
        self.changes.extend(held.remove(name, texts));
        self.remove_placeholder(name);
    }

    /// Removes the placeholder of a resource.
    fn remove_placeholder(&mut self, name: &str) {
        if self.state.type_state(self.kind).placeholders.remove(name) {
            self.changes.push(placeholder::removal(self.kind, name));
        }
    }

    /// Answers the requests for a removed name, unless the same response added it again.
    fn answer_absent(&mut self, name: &str) {
        if self.kind == Type::Address && !self.state.addresses.held.contains(name) {
            let pending = &mut self.state.pending;
            pending.answer(name, FetchOutcome::Absent, &mut self.answers);
            self.outcome.removed_keys.extend(pending.forget(name));
            self.outcome.removed_keys.push(name.to_owned());
        }
    }

    fn remove_unconfirmed(&mut self) {
        let Unconfirmed { held, placeholders } = std::mem::take(&mut self.unconfirmed);
        for name in placeholders {
            self.remove_placeholder(&name);
        }
        for name in held {
            self.remove_resource(&name);
            self.answer_absent(&name);
        }
    }

    fn apply_resource(&mut self, resource: &Resource) {
        self.unconfirmed.held.remove(&*resource.name);
        self.unconfirmed.placeholders.remove(&*resource.name);
        match self.decode(resource) {
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

    /// Decodes a resource. Returns its change, or `None` if the resource is unchanged.
    fn decode(&mut self, resource: &Resource) -> Result<Option<Change>, ResourceError> {
        let content = content(self.kind, resource)?;
        let digest = digest_of(content);
        let State {
            addresses,
            policies,
            texts,
            trust_domain,
            pending,
            ..
        } = &mut *self.state;
        let held = match self.kind {
            Type::Address => &mut addresses.held,
            Type::Authorization => &mut policies.held,
        };
        let (name, version) = (&resource.name, &resource.version);
        let unchanged = held.is_same(name, version, &digest, texts);
        // A fetch request may be for an address, which only the content contains.
        if unchanged && (pending.is_empty() || self.kind == Type::Authorization) {
            return Ok(None);
        }
        let warn = |warning: &str| tracing::warn!(policy = %name.escape_debug(), "{warning}");
        let change = decode(self.kind, name, content, trust_domain, texts, warn)?;
        if unchanged {
            self.answer_received(resource, Some(&change));
            return Ok(None);
        }
        let removal = held.insert(name, version, digest, &change, texts);
        self.changes.extend(removal);
        Ok(Some(change))
    }

    fn answer_received(&mut self, resource: &Resource, change: Option<&Change>) {
        if self.kind == Type::Address {
            let received = ReceivedResource {
                name: &resource.name,
                aliases: &resource.aliases,
                change,
            };
            let stale = self
                .state
                .pending
                .answer_received(&received, &mut self.answers);
            self.outcome.removed_keys.extend(stale);
        }
    }

    fn refuse(&mut self, resource: &Resource, error: &ResourceError) {
        self.outcome.refused += 1;
        if self.outcome.refusals.len() >= DETAILED_REFUSALS {
            return;
        }
        let name: String = resource.name.chars().take(256).collect();
        tracing::warn!(
            resource = %name.escape_debug(),
            reason = error.reason(),
            fault = error.fault().as_str(),
            "refused a resource of the control plane: {error}"
        );
        self.outcome.refusals.push(format!("{name}: {error}"));
    }

    /// Adds a placeholder for a refused resource, which must not be treated as missing. The last good
    /// version of a policy stays enforced. The last good version of a workload or service stays in
    /// use, and the new addresses get a placeholder.
    fn add_placeholder(&mut self, resource: &Resource) {
        let type_state = self.state.type_state(self.kind);
        if self.kind == Type::Authorization && type_state.held.contains(&resource.name) {
            return;
        }
        if let Some(change) = placeholder::for_refused(self.kind, resource) {
            type_state
                .placeholders
                .insert(resource.name.as_str().into());
            self.changes.push(change);
        }
    }

    /// After every [`BATCH_SIZE`] resources: sends the changes and lets other tasks run.
    async fn yield_after_batch(
        &mut self,
        at: usize,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        if (at + 1).is_multiple_of(BATCH_SIZE) {
            self.send_batch(false, events).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn finish(mut self, events: &mpsc::Sender<Event>) -> Result<PushOutcome, Error> {
        self.send_batch(true, events).await?;
        Ok(self.outcome)
    }

    async fn send_batch(&mut self, last: bool, events: &mpsc::Sender<Event>) -> Result<(), Error> {
        let changes = std::mem::take(&mut self.changes);
        let answers = std::mem::take(&mut self.answers);
        self.sent_changes |= !changes.is_empty();
        let batch = Batch::new(changes, last, answers);
        if batch.is_empty() && !(last && self.sent_changes) {
            return Ok(());
        }
        let sent = events.send(Event::Changes(batch)).await;
        sent.map_err(|_closed| Error::ReceiverDropped)
    }
}
