//! One stream: its requests and responses.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Streaming;

use super::config::{Node, Subscription};
use super::error::Error;
use super::event::{Answer, Batch, Event};
use super::on_demand::FetchRequest;
use super::pending_fetches::Added;
use super::push::{PushOutcome, State, TypeState};
use super::resource::Type;
use api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::google::rpc::Status;
use mesh::FetchOutcome;

/// The length of the queue of requests to the control plane.
pub(super) const REQUESTS: usize = 64;
/// The longest time that the control plane may leave this queue full.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// The state of one stream.
pub(super) struct Stream<'a> {
    pub(super) state: &'a mut State,
    pub(super) subscription: Subscription,
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(super) events: &'a mpsc::Sender<Event>,
    pub(super) fetches: Option<&'a mut mpsc::Receiver<FetchRequest>>,
    /// Whether `Synced` was sent.
    pub(super) synced: &'a mut bool,
    /// Whether the control plane has sent a response on this stream.
    pub(super) answered: bool,
}

impl Stream<'_> {
    /// Subscribes to both types, with the versions of the held resources.
    pub(super) async fn subscribe(&mut self, node: &Node) -> Result<(), Error> {
        // The first request of a stream describes the node. Policies come first, so that a workload does
        // not arrive before the policies that protect it.
        let mut policies = first_request(self.state, Type::Authorization, Subscription::Everything);
        policies.node = Some(node.message());
        self.send(policies).await?;
        let mut addresses = first_request(self.state, Type::Address, self.subscription);
        if self.subscription == Subscription::OnDemand {
            let TypeState {
                held, placeholders, ..
            } = &self.state.addresses;
            let refused = placeholders.iter().filter(|name| !held.contains(name));
            let names = held.names().chain(refused);
            let mut names: Vec<String> = names.map(ToString::to_string).collect();
            names.extend(self.state.pending.keys_to_subscribe().cloned());
            names.push("*".to_owned());
            addresses.resource_names_subscribe = names;
            addresses.resource_names_unsubscribe = vec!["*".to_owned()];
        }
        self.send(addresses).await
    }

    /// Serves the stream until it ends.
    pub(super) async fn follow(
        &mut self,
        mut inbound: Streaming<DeltaDiscoveryResponse>,
    ) -> Result<(), Error> {
        loop {
            tokio::select! {
                response = inbound.message() => match response {
                    Ok(Some(response)) => {
                        self.answered = true;
                        self.respond(response).await?;
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => {
                        return Err(Error::Ended {
                            code: status.code(),
                            message: truncated(status.message()),
                        });
                    }
                },
                fetch = next(&mut self.fetches) => self.fetch(fetch).await?,
            }
        }
    }

    async fn respond(&mut self, response: DeltaDiscoveryResponse) -> Result<(), Error> {
        let Some(kind) = Type::of(&response.type_url) else {
            // An acknowledgement would subscribe to the type.
            let url = truncated(&response.type_url);
            tracing::warn!("ignored a response of the type {url:?}, which is not subscribed");
            return Ok(());
        };
        let nonce = response.nonce.clone();
        tracing::debug!(
            r#type = kind.url(),
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "received a response"
        );
        let outcome = self.state.apply(kind, response, self.events).await?;
        self.send(DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce,
            error_detail: error_detail(&outcome),
            ..DeltaDiscoveryRequest::default()
        })
        .await?;
        if self.subscription == Subscription::OnDemand {
            self.unsubscribe(outcome.removed_keys).await?;
        }
        self.state.type_state(kind).received = true;
        self.send_synced().await
    }

    /// Sends `Synced` once both types have a response; with on-demand discovery, once policies have one.
    async fn send_synced(&mut self) -> Result<(), Error> {
        let addresses =
            self.subscription == Subscription::OnDemand || self.state.addresses.received;
        if *self.synced || !addresses || !self.state.policies.received {
            return Ok(());
        }
        *self.synced = true;
        let sent = self.events.send(Event::Synced).await;
        sent.map_err(|_closed| Error::ReceiverDropped)
    }

    /// Subscribes to the resource of a fetch request, or answers the request if the resource is held.
    async fn fetch(&mut self, fetch: FetchRequest) -> Result<(), Error> {
        if fetch.answer.is_closed() {
            return Ok(());
        }
        let key = fetch.key.clone();
        let pending = &mut self.state.pending;
        // The control plane does not answer again for a subscribed resource. The answer is queued
        // behind the changes, so that it does not overtake them.
        if self.state.addresses.held.contains(&key) || pending.has_found(&key) {
            let answer = Answer {
                requester: fetch.answer,
                outcome: FetchOutcome::Found,
            };
            let batch = Batch::new(Vec::new(), true, vec![answer]);
            let sent = self.events.send(Event::Changes(batch)).await;
            return sent.map_err(|_closed| Error::ReceiverDropped);
        }
        let abandoned = pending.evict_abandoned();
        let added = pending.add(fetch);
        self.unsubscribe(abandoned).await?;
        if added != Added::NewKey {
            return Ok(());
        }
        self.send(DeltaDiscoveryRequest {
            type_url: Type::Address.url().to_owned(),
            resource_names_subscribe: vec![key],
            ..DeltaDiscoveryRequest::default()
        })
        .await
    }

    async fn unsubscribe(&mut self, names: Vec<String>) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        self.send(DeltaDiscoveryRequest {
            type_url: Type::Address.url().to_owned(),
            resource_names_unsubscribe: names,
            ..DeltaDiscoveryRequest::default()
        })
        .await
    }

    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), Error> {
        match self.requests.send_timeout(request, UNREAD_MAX).await {
            // `follow` reports the end of the stream.
            Ok(()) | Err(mpsc::error::SendTimeoutError::Closed(_)) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(Error::Stalled { after: UNREAD_MAX })
            }
        }
    }
}

async fn next(fetches: &mut Option<&mut mpsc::Receiver<FetchRequest>>) -> FetchRequest {
    if let Some(fetches) = fetches
        && let Some(fetch) = fetches.recv().await
    {
        return fetch;
    }
    // All handles were dropped.
    std::future::pending().await
}

fn first_request(
    state: &mut State,
    kind: Type,
    subscription: Subscription,
) -> DeltaDiscoveryRequest {
    let type_state = state.type_state(kind);
    let versions = type_state.held.versions();
    type_state.begin_stream(versions.is_some(), subscription);
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        initial_resource_versions: versions.unwrap_or_default(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn error_detail(outcome: &PushOutcome) -> Option<Status> {
    let omitted = outcome.refused - outcome.refusals.len();
    let mut message = outcome.refusals.join("; ");
    if omitted > 0 {
        message.push_str(&format!("; and {omitted} more"));
    }
    (outcome.refused > 0).then_some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

/// Truncates a message of the control plane for a log line.
pub(super) fn truncated(text: &str) -> String {
    text.chars().take(1024).collect()
}
