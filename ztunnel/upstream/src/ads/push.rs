//! One response of the control plane: which changes it brings, what of it is refused, and who has
//! waited for it.
//!
//! Resources are read in slices, so that a push of a whole mesh does not stop everything else on
//! this thread, and handed on as they are read. What has gone comes first: an address may have
//! passed from a workload that is gone to one that is new.

use std::sync::Arc;

use foldhash::HashSet;
use tokio::sync::mpsc;

use super::config::Subscription;
use super::error::Error;
use super::event::{Answer, Batch, Event};
use super::known::{Known, digest_of};
use super::placeholder;
use super::resource::{ResourceError, Type, content, read};
use super::waiting::{Arrival, Waiting};
use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use mesh::{Change, Fetched, Interner};

/// Resources in a batch.
const SLICE: usize = 512;
/// Refusals that are spelled out to the control plane and in the log.
const SPELLED_OUT: usize = 32;

/// Everything that outlives a stream.
pub(super) struct State {
    pub(super) trust_domain: String,
    pub(super) addresses: Holding,
    pub(super) policies: Holding,
    pub(super) waiting: Waiting,
    texts: Interner,
}

/// One type.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) known: Known,
    /// What is gone unless the next response, the first of a stream, names it.
    unconfirmed: Unconfirmed,
    /// What was refused: something stands for it in the mesh.
    pub(super) stands_in: HashSet<Arc<str>>,
    /// Whether there was a response ever.
    pub(super) answered: bool,
}

#[derive(Debug, Default)]
struct Unconfirmed {
    held: HashSet<Arc<str>>,
    stands_in: HashSet<Arc<str>>,
}

impl Holding {
    /// A stream begins. Everything that is held is told to the control plane by its version, unless
    /// that was too much (`told` is false): then all there is comes again. What is refused is not
    /// told, so where everything is subscribed it comes again in any case, if it is still there.
    pub(super) fn begins(&mut self, told: bool, subscription: Subscription) {
        let mut unconfirmed = Unconfirmed::default();
        if !told {
            unconfirmed.held.extend(self.known.names().cloned());
        }
        if subscription == Subscription::Everything {
            unconfirmed.stands_in.extend(self.stands_in.iter().cloned());
        }
        self.unconfirmed = unconfirmed;
    }
}

/// What a response led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Resources that were refused.
    pub(super) refused: usize,
    /// The first of them, with the reasons.
    pub(super) complaints: Vec<String>,
    /// Names and keys behind which there is nothing any more.
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

    /// Takes a response in. Returns when all of it was handed on.
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
            push.released(name);
            push.pause(at, outlet).await?;
        }
        for (at, resource) in resources.into_iter().enumerate() {
            push.resource(&resource);
            push.pause(at, outlet).await?;
        }
        push.drop_unconfirmed();
        removed.iter().for_each(|name| push.is_gone(name));
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
    /// Whether changes of this push were handed on already, so that its end has to be told.
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

    fn released(&mut self, name: &str) {
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
        self.withdraw(name);
    }

    /// Nothing stands for this resource any longer.
    fn withdraw(&mut self, name: &str) {
        if self.state.holding(self.kind).stands_in.remove(name) {
            self.changes.push(placeholder::withdrawn(self.kind, name));
        }
    }

    /// Nobody need wait for this name, unless the same response brought it back.
    fn is_gone(&mut self, name: &str) {
        if self.kind == Type::Address && !self.state.addresses.known.holds(name) {
            let waiting = &mut self.state.waiting;
            waiting.answer(name, Fetched::Absent, &mut self.answers);
            self.outcome.gone.extend(waiting.left(name));
            self.outcome.gone.push(name.to_owned());
        }
    }

    fn drop_unconfirmed(&mut self) {
        let Unconfirmed { held, stands_in } = std::mem::take(&mut self.unconfirmed);
        for name in stands_in {
            self.withdraw(&name);
        }
        for name in held {
            self.released(&name);
            self.is_gone(&name);
        }
    }

    fn resource(&mut self, resource: &Resource) {
        self.unconfirmed.held.remove(&*resource.name);
        self.unconfirmed.stands_in.remove(&*resource.name);
        match self.read(resource) {
            Ok(change) => {
                match self.kind {
                    Type::Address => self.withdraw(&resource.name),
                    // A policy takes the place of what stood for it.
                    Type::Authorization => {
                        self.state.policies.stands_in.remove(&*resource.name);
                    }
                }
                if let Some(change) = change {
                    self.arrived(resource, Some(&change));
                    self.changes.push(change);
                }
            }
            Err(error) => {
                self.refuse(resource, &error);
                self.stand_in(resource);
                self.arrived(resource, None);
            }
        }
    }

    /// The change, or nothing where all is as it was.
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
        // Whoever waits may know it by an address, which only its content tells.
        if same && (waiting.is_empty() || self.kind == Type::Authorization) {
            return Ok(None);
        }
        let doubt = |doubt: &str| tracing::warn!(policy = %name.escape_debug(), "{doubt}");
        let change = read(self.kind, name, content, trust_domain, texts, doubt)?;
        if same {
            self.arrived(resource, Some(&change));
            return Ok(None);
        }
        let before = known.hold(name, version, digest, &change, texts);
        self.changes.extend(before);
        Ok(Some(change))
    }

    fn arrived(&mut self, resource: &Resource, change: Option<&Change>) {
        if self.kind == Type::Address {
            let arrival = Arrival {
                name: &resource.name,
                aliases: &resource.aliases,
                change,
            };
            let lost = self.state.waiting.came(&arrival, &mut self.answers);
            self.outcome.gone.extend(lost);
        }
    }

    fn refuse(&mut self, resource: &Resource, error: &ResourceError) {
        self.outcome.refused += 1;
        if self.outcome.complaints.len() >= SPELLED_OUT {
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

    /// What cannot be read must not count as if it were not there. Of a policy the last good version
    /// goes on being enforced; a workload or service goes on being what it was, where it was, but it
    /// may have got addresses that nobody else has.
    fn stand_in(&mut self, resource: &Resource) {
        let holding = self.state.holding(self.kind);
        if self.kind == Type::Authorization && holding.known.holds(&resource.name) {
            return;
        }
        if let Some(change) = placeholder::of(self.kind, resource) {
            holding.stands_in.insert(resource.name.as_str().into());
            self.changes.push(change);
        }
    }

    /// After every slice: hands on what there is, and lets others run.
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
