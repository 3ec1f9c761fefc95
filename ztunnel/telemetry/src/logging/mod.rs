//! The proxy's log: `tracing` events (and `log` records, through the bridge of
//! tracing-subscriber) become lines on standard output.
//!
//! A thread that logs formats its line into a buffer of its own and appends it to a queue; a
//! background thread writes what has piled up. Nothing that carries traffic waits for the
//! log's reader: when the queue is full, lines are dropped and counted. Which events are
//! wanted can be changed while running, through [`LogHandle`].

mod escape;
mod filter;
mod line;
mod queue;

use std::io::Write;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub use filter::{Filter, FilterError};
pub use queue::LogGuard;

use line::Lines;
use queue::Queue;

use mesh::Fault;

/// How lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Tab-separated: time, level, target, message, `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line: `level`, `time`, `scope`, `message`, and the fields.
    Json,
}

/// A name that is no log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a log format: expected text or json")]
pub struct ParseLogFormatError {
    /// The name as it was found.
    pub text: String,
}

impl FromStr for LogFormat {
    type Err = ParseLogFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(ParseLogFormatError { text: text.into() }),
        }
    }
}

/// What the log is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Which events are wanted.
    pub filter: Filter,
    /// How lines look.
    pub format: LogFormat,
}

/// Why the log could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused the background thread.
    #[error("cannot start the thread that writes the log")]
    Thread {
        /// What it said.
        source: std::io::Error,
    },
    /// Somebody else is the process's log already.
    #[error("the log was started twice in this process")]
    StartedTwice,
    /// The log has been taken down.
    #[error("the log is not running any more")]
    Stopped,
}

impl LogError {
    /// A closed set, for labels and fields.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Thread { .. } => "log_thread",
            Self::StartedTwice => "log_started_twice",
            Self::Stopped => "log_stopped",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

/// Changes and shows which events are logged, from any thread.
#[derive(Debug, Clone)]
pub struct LogHandle {
    shared: Arc<Shared>,
    dropped: Counter,
}

#[derive(Debug)]
struct Shared {
    reload: reload::Handle<Targets, Registry>,
    initial: Filter,
    current: Mutex<Filter>,
}

impl LogHandle {
    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> Filter {
        self.shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn set(&self, filter: Filter) -> Result<(), LogError> {
        let mut current = self
            .shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Reloading fails only when the subscriber is gone (or a thread panicked inside it).
        self.shared
            .reload
            .reload(filter.targets())
            .map_err(|_gone| LogError::Stopped)?;
        log::set_max_level(bridge_level(LevelFilter::current()));
        *current = filter;
        Ok(())
    }

    /// Puts the filter of the start in force again.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn reset(&self) -> Result<(), LogError> {
        self.set(self.shared.initial.clone())
    }

    /// Lines that were dropped because the queue was full or could not be written.
    #[must_use]
    pub fn dropped_lines(&self) -> Counter {
        self.dropped.clone()
    }
}

/// Starts the process's log on standard output. Keep the guard until the very end of `main`:
/// dropping it writes what is still queued.
///
/// # Errors
/// When there is one already, or no thread for it.
pub fn init_logging(config: &LogConfig) -> Result<(LogHandle, LogGuard), LogError> {
    let (subscriber, handle, guard) = build_log(config, std::io::stdout())?;
    subscriber
        .try_init()
        .map_err(|_taken| LogError::StartedTwice)?;
    Ok((handle, guard))
}

/// Builds the log without installing it, and writes its lines to `out`.
///
/// # Errors
/// When there is no thread for it.
pub fn build_log(
    config: &LogConfig,
    out: impl Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync + 'static, LogHandle, LogGuard), LogError> {
    let dropped = Counter::default();
    let (queue, guard) =
        Queue::start(out, dropped.clone()).map_err(|source| LogError::Thread { source })?;
    let (filter, reload) = reload::Layer::new(config.filter.targets());
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(Lines::new(config.format, queue));
    let shared = Shared {
        reload,
        initial: config.filter.clone(),
        current: Mutex::new(config.filter.clone()),
    };
    Ok((
        subscriber,
        LogHandle {
            shared: Arc::new(shared),
            dropped,
        },
        guard,
    ))
}

/// The bridge asks the `log` crate's own level first, so it has to follow.
fn bridge_level(level: LevelFilter) -> log::LevelFilter {
    level
        .into_level()
        .map_or(log::LevelFilter::Off, |level| match level {
            tracing::Level::ERROR => log::LevelFilter::Error,
            tracing::Level::WARN => log::LevelFilter::Warn,
            tracing::Level::INFO => log::LevelFilter::Info,
            tracing::Level::DEBUG => log::LevelFilter::Debug,
            tracing::Level::TRACE => log::LevelFilter::Trace,
        })
}

#[cfg(test)]
mod tests;
