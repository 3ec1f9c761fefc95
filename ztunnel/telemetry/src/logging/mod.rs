//! The proxy's log: `tracing` events (and `log` records, through the bridge of
//! tracing-subscriber) become lines on standard output.
//!
//! A thread that logs formats its line into a buffer of its own and appends it to a queue; a
//! background thread writes the queue. No thread that carries traffic waits for the log's reader:
//! when the queue is full, lines are dropped and counted. [`LogHandle`] changes the filter while
//! the process runs.

mod escape;
mod filter;
mod line;
mod queue;
mod targets;

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

/// The format of the log's lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Tab-separated: time, level, target, message, `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line: `level`, `time`, `scope` (the target), `message`, and the fields.
    Json,
}

/// A text that is no log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a log format: expected text or json")]
pub struct ParseLogFormatError {
    /// The text.
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

/// The initial configuration of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The events that are logged.
    pub filter: Filter,
    /// The format of the lines.
    pub format: LogFormat,
}

/// A failure to start or change the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The background thread cannot be created.
    #[error("cannot start the thread that writes the log")]
    Thread {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The process already has a log.
    #[error("the log cannot be started: this process has one already")]
    StartedTwice,
    /// The log was stopped.
    #[error("the filter cannot be changed: the log was stopped")]
    Stopped,
}

impl LogError {
    /// A stable name, for labels and fields.
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

/// Shows and changes the filter, from any thread.
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
    /// The current filter.
    #[must_use]
    pub fn filter(&self) -> Filter {
        self.shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sets the filter.
    ///
    /// # Errors
    /// If the log was stopped.
    pub fn set(&self, filter: Filter) -> Result<(), LogError> {
        let mut current = self
            .shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Reloading fails only if the subscriber was dropped (or a thread panicked inside it).
        self.shared
            .reload
            .reload(filter.targets())
            .map_err(|_gone| LogError::Stopped)?;
        log::set_max_level(bridge_level(LevelFilter::current()));
        *current = filter;
        Ok(())
    }

    /// Sets the filter of the start again.
    ///
    /// # Errors
    /// If the log was stopped.
    pub fn reset(&self) -> Result<(), LogError> {
        self.set(self.shared.initial.clone())
    }

    /// The number of lines that were dropped because the queue was full or a write failed.
    #[must_use]
    pub fn dropped_lines(&self) -> Counter {
        self.dropped.clone()
    }
}

/// Starts the process's log on standard output. Keep the guard until the end of `main`: dropping
/// it writes the lines that are still queued.
///
/// # Errors
/// If the process already has a log, or the background thread cannot be created.
pub fn init_logging(config: &LogConfig) -> Result<(LogHandle, LogGuard), LogError> {
    let (subscriber, handle, guard) = build_log(config, std::io::stdout())?;
    subscriber
        .try_init()
        .map_err(|_taken| LogError::StartedTwice)?;
    Ok((handle, guard))
}

/// Builds the log without installing it; it writes its lines to `out`.
///
/// # Errors
/// If the background thread cannot be created.
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

/// The maximum level of the `log` crate, which its macros check before the bridge does.
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
