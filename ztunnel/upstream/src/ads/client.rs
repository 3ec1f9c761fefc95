//! The client: connects, serves the stream, waits and connects again.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::backoff::Backoff;
use super::config::{Config, ConfigError, Subscription, ValidConfig};
use super::connection;
use super::error::Error;
use super::event::Event;
use super::on_demand::{FetchRequest, OnDemandFetcher};
use super::push::State;
use super::stream::{REQUESTS, Stream, truncated};
use api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use telemetry::{XdsMetrics, XdsTermination};

/// The length of the event queue: a few batches of a large push.
pub(super) const EVENT_QUEUE: usize = 8;

/// A stream of at least this duration resets the back-off.
const STABLE_STREAM: Duration = Duration::from_secs(10);

/// The client of one control plane.
pub struct Client {
    config: ValidConfig,
    metrics: XdsMetrics,
    state: State,
    events: mpsc::Sender<Event>,
    fetcher: Option<OnDemandFetcher>,
    fetches: Option<mpsc::Receiver<FetchRequest>>,
    synced: bool,
}

/// How an attempt ended.
struct StreamEnd {
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
        let config = ValidConfig::new(config)?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (fetcher, fetches) = match config.settings.subscription {
            Subscription::Everything => (None, None),
            Subscription::OnDemand => {
                let (fetcher, fetches) = OnDemandFetcher::new(config.settings.demand_timeout);
                (Some(fetcher), Some(fetches))
            }
        };
        let client = Self {
            state: State::new(&config.settings.trust_domain),
            config,
            metrics,
            events,
            fetcher,
            fetches,
            synced: false,
        };
        Ok((client, receiver))
    }

    /// The handle that fetches single resources; `None` if the whole mesh is subscribed.
    #[must_use]
    pub fn fetcher(&self) -> Option<OnDemandFetcher> {
        self.fetcher.clone()
    }

    /// Serves the control plane. Returns when the receiver of the events is dropped.
    pub async fn run(mut self) {
        // Drops the own handle: the queue of fetches closes when all other handles are dropped.
        self.fetcher = None;
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = Box::pin(self.reconnect_loop()) => {}
        }
    }

    async fn reconnect_loop(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let end = self.attempt().await;
            // A new stream may send the whole mesh again, so a short stream does not reset the wait.
            if end.answered && began.elapsed() >= STABLE_STREAM {
                backoff.reset();
            }
            let wait = backoff.next();
            let address = &self.config.settings.address;
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

    async fn attempt(&mut self) -> StreamEnd {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let mut stream = Stream {
            state: &mut self.state,
            subscription: self.config.settings.subscription,
            requests,
            events: &self.events,
            fetches: self.fetches.as_mut(),
            synced: &mut self.synced,
            answered: false,
        };
        let outcome = serve(&self.config, &mut stream, ReceiverStream::new(outgoing)).await;
        StreamEnd {
            answered: stream.answered,
            outcome,
        }
    }
}

async fn serve(
    config: &ValidConfig,
    stream: &mut Stream<'_>,
    outgoing: ReceiverStream<api::envoy::service::discovery::v3::DeltaDiscoveryRequest>,
) -> Result<(), Error> {
    let settings = &config.settings;
    let channel = connection::connect(config).await?;
    let mut request = Request::new(outgoing);
    *request.metadata_mut() = connection::metadata(config).await?;
    // The control plane may send nothing before it has read the first request.
    stream.subscribe(&settings.node).await?;
    let mut service = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(settings.max_message)
        .max_encoding_message_size(usize::MAX);
    let response = service.delta_aggregated_resources(request).await;
    let inbound = response.map_err(|status| Error::Refused {
        address: settings.address.clone(),
        code: status.code(),
        message: truncated(status.message()),
    })?;
    tracing::info!(address = %settings.address, "connected to the control plane");
    stream.follow(inbound.into_inner()).await
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config.settings)
            .finish_non_exhaustive()
    }
}
