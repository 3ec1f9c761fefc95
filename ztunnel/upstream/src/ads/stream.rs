//! One stream, from its first requests to its end.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Streaming;

use super::config::{Node, Subscription};
use super::demand::Question;
use super::error::Error;
use super::event::{Answer, Batch, Event};
use super::push::{Holding, Outcome, State};
use super::resource::Type;
use api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::google::rpc::Status;
use mesh::Fetched;

/// Requests that wait to be sent.
pub(super) const REQUESTS: usize = 64;
/// How long the control plane may leave them there.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// Where a stream's requests go, and what it serves.
pub(super) struct Stream<'a> {
    pub(super) state: &'a mut State,
    pub(super) subscription: Subscription,
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(super) outlet: &'a mpsc::Sender<Event>,
    pub(super) questions: Option<&'a mut mpsc::Receiver<Question>>,
    /// Whether `Synced` was told.
    pub(super) synced: &'a mut bool,
    /// Whether the control plane has sent anything on this stream.
    pub(super) answered: bool,
}

impl Stream<'_> {
    /// Subscribes to both types, and says what is held from an earlier stream.
    pub(super) async fn subscribe(&mut self, node: &Node) -> Result<(), Error> {
        // The node is named once a stream. Policies come first: a workload should not be known
        // for longer than what guards it.
        let mut policies = first_request(self.state, Type::Authorization, Subscription::Everything);
        policies.node = Some(node.message());
        self.send(policies).await?;
        let mut addresses = first_request(self.state, Type::Address, self.subscription);
        if self.subscription == Subscription::OnDemand {
            let Holding {
                known, stands_in, ..
            } = &self.state.addresses;
            let refused = stands_in.iter().filter(|name| !known.holds(name));
            let names = known.names().chain(refused);
            let mut names: Vec<String> = names.map(ToString::to_string).collect();
            names.extend(self.state.waiting.resume().cloned());
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
                            message: shown(status.message()),
                        });
                    }
                },
                question = next(&mut self.questions) => self.ask(question).await?,
            }
        }
    }

    async fn respond(&mut self, response: DeltaDiscoveryResponse) -> Result<(), Error> {
        let Some(kind) = Type::of(&response.type_url) else {
            // To answer would subscribe to it.
            let url = shown(&response.type_url);
            tracing::warn!("the control plane sent a type that was not asked for: {url:?}");
            return Ok(());
        };
        let nonce = response.nonce.clone();
        tracing::debug!(
            r#type = kind.url(),
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "the control plane has news"
        );
        let outcome = self.state.take(kind, response, self.outlet).await?;
        self.send(DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce,
            error_detail: complaint(&outcome),
            ..DeltaDiscoveryRequest::default()
        })
        .await?;
        if self.subscription == Subscription::OnDemand {
            self.unsubscribe(outcome.gone).await?;
        }
        self.state.holding(kind).answered = true;
        self.tell_synced().await
    }

    /// Says once that the beginning is complete. On demand, addresses have no beginning.
    async fn tell_synced(&mut self) -> Result<(), Error> {
        let addresses =
            self.subscription == Subscription::OnDemand || self.state.addresses.answered;
        if *self.synced || !addresses || !self.state.policies.answered {
            return Ok(());
        }
        *self.synced = true;
        let sent = self.outlet.send(Event::Synced).await;
        sent.map_err(|_closed| Error::Abandoned)
    }

    async fn ask(&mut self, question: Question) -> Result<(), Error> {
        if question.answer.is_closed() {
            return Ok(());
        }
        let key = question.key.clone();
        let waiting = &mut self.state.waiting;
        // The control plane does not answer a second time for what is subscribed. The answer
        // goes the way of the changes, so that it does not overtake them.
        if self.state.addresses.known.holds(&key) || waiting.has_found(&key) {
            let answer = Answer {
                to: question.answer,
                fetched: Fetched::Found,
            };
            let batch = Batch::new(Vec::new(), true, vec![answer]);
            let sent = self.outlet.send(Event::Changes(batch)).await;
            return sent.map_err(|_closed| Error::Abandoned);
        }
        let abandoned = waiting.make_room();
        let to_be_asked = waiting.ask(question);
        self.unsubscribe(abandoned).await?;
        if !to_be_asked {
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
            // That the stream has ended is told by its other half.
            Ok(()) | Err(mpsc::error::SendTimeoutError::Closed(_)) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(Error::Stalled { after: UNREAD_MAX })
            }
        }
    }
}

async fn next(questions: &mut Option<&mut mpsc::Receiver<Question>>) -> Question {
    if let Some(questions) = questions
        && let Some(question) = questions.recv().await
    {
        return question;
    }
    // Nobody can ask.
    std::future::pending().await
}

fn first_request(
    state: &mut State,
    kind: Type,
    subscription: Subscription,
) -> DeltaDiscoveryRequest {
    let holding = state.holding(kind);
    let versions = holding.known.versions();
    holding.begins(versions.is_some(), subscription);
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        initial_resource_versions: versions.unwrap_or_default(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn complaint(outcome: &Outcome) -> Option<Status> {
    let unnamed = outcome.refused - outcome.complaints.len();
    let mut message = outcome.complaints.join("; ");
    if unnamed > 0 {
        message.push_str(&format!("; and {unnamed} more"));
    }
    (outcome.refused > 0).then_some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

/// As much of what the control plane said as a log line repeats.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(1024).collect()
}
