//! The client: connects, serves the stream, waits and connects again.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::backoff::Backoff;
use super::config::{Checked, Config, ConfigError, Subscription};
use super::connection;
use super::demand::{Demand, FetchRequest};
use super::error::Error;
use super::event::Event;
use super::push::State;
use super::stream::{REQUESTS, Stream, shown};
use api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use telemetry::{XdsMetrics, XdsTermination};

/// The length of the event queue: a few slices of a large push.
pub(super) const EVENTS: usize = 8;

/// After a stream of this duration the back-off starts again.
const LASTING: Duration = Duration::from_secs(10);

/// The client of one control plane.
pub struct Client {
    to: Checked,
    metrics: XdsMetrics,
    state: State,
    outlet: mpsc::Sender<Event>,
    demand: Option<Demand>,
    fetches: Option<mpsc::Receiver<FetchRequest>>,
    synced: bool,
}

/// How an attempt ended.
struct End {
    /// Whether the control plane has sent a response.
    answered: bool,
    outcome: Result<(), Error>,
}

impl Client {
    /// Creates the client and the channel of its events. [`Self::run`] connects.
    ///
    /// # Errors
    /// When a setting is invalid.
    pub fn new(
        config: Config,
        metrics: XdsMetrics,
    ) -> Result<(Self, mpsc::Receiver<Event>), ConfigError> {
        let to = Checked::new(config)?;
        let (outlet, events) = mpsc::channel(EVENTS);
        let (demand, fetches) = match to.config.subscription {
            Subscription::Everything => (None, None),
            Subscription::OnDemand => {
                let (demand, fetches) = Demand::new(to.config.demand_timeout);
                (Some(demand), Some(fetches))
            }
        };
        let client = Self {
            state: State::new(&to.config.trust_domain),
            to,
            metrics,
            outlet,
            demand,
            fetches,
            synced: false,
        };
        Ok((client, events))
    }

    /// The handle that fetches single resources; `None` if the whole mesh is subscribed.
    #[must_use]
    pub fn demand(&self) -> Option<Demand> {
        self.demand.clone()
    }

    /// Serves the control plane. Returns when the receiver of the events is dropped.
    pub async fn run(mut self) {
        // The channel of requests closes when all other handles are dropped.
        self.demand = None;
        let outlet = self.outlet.clone();
        tokio::select! {
            () = outlet.closed() => {}
            () = Box::pin(self.connect_for_ever()) => {}
        }
    }

    async fn connect_for_ever(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let end = self.attempt().await;
            // A stream that ends at once must not be repeated without a wait: each sends the whole mesh.
            if end.answered && began.elapsed() >= LASTING {
                backoff.reset();
            }
            let wait = backoff.next();
            let address = &self.to.config.address;
            let termination = match &end.outcome {
                Ok(()) => {
                    tracing::info!(%address, again_in = ?wait, "the control plane ended the stream");
                    XdsTermination::Complete
                }
                Err(error) => {
                    let (reason, fault) = (error.reason(), error.fault().as_str());
                    tracing::warn!(%address, reason, fault, again_in = ?wait, "{error}");
                    error.termination()
                }
            };
            self.metrics.terminated(termination);
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&mut self) -> End {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let mut stream = Stream {
            state: &mut self.state,
            subscription: self.to.config.subscription,
            requests,
            outlet: &self.outlet,
            fetches: self.fetches.as_mut(),
            synced: &mut self.synced,
            answered: false,
        };
        let outcome = serve(&self.to, &mut stream, ReceiverStream::new(outgoing)).await;
        End {
            answered: stream.answered,
            outcome,
        }
    }
}

async fn serve(
    to: &Checked,
    stream: &mut Stream<'_>,
    outgoing: ReceiverStream<api::envoy::service::discovery::v3::DeltaDiscoveryRequest>,
) -> Result<(), Error> {
    let config = &to.config;
    let channel = connection::connect(to).await?;
    let mut request = Request::new(outgoing);
    *request.metadata_mut() = connection::metadata(to).await?;
    // The control plane may send nothing before it has read the first request.
    stream.subscribe(&config.node).await?;
    let mut service = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(config.max_message)
        .max_encoding_message_size(usize::MAX);
    let response = service.delta_aggregated_resources(request).await;
    let inbound = response.map_err(|status| Error::Refused {
        address: config.address.clone(),
        code: status.code(),
        message: shown(status.message()),
    })?;
    tracing::info!(address = %config.address, "connected to the control plane");
    stream.follow(inbound.into_inner()).await
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.to.config)
            .finish_non_exhaustive()
    }
}
