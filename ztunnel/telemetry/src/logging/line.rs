//! Formats an event as a line.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::LogFormat;
use super::escape::{Escaped, Style};
use super::queue::Queue;
use super::targets::is_ours;

thread_local! {
    /// The buffers in which a thread formats its lines.
    static DRAFT: RefCell<Draft> = const { RefCell::new(Draft::new()) };
}

/// The layer that writes lines.
#[derive(Debug)]
pub(super) struct Lines {
    format: LogFormat,
    queue: Arc<Queue>,
}

impl Lines {
    pub(super) const fn new(format: LogFormat, queue: Arc<Queue>) -> Self {
        Self { format, queue }
    }

    fn write(&self, draft: &mut Draft, event: &Event<'_>) {
        // Writing to a String fails only if a value's Display does; the line is lost then.
        if draft.fill(self.format, event, SystemTime::now()).is_ok() {
            self.queue.push(draft.line.as_bytes());
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let written = DRAFT.try_with(|draft| {
            draft
                .try_borrow_mut()
                .map(|mut draft| self.write(&mut draft, event))
                .is_ok()
        });
        // The thread's buffers are in use while a value is formatted that logs itself, and are
        // destroyed while the thread ends.
        if !matches!(written, Ok(true)) {
            self.write(&mut Draft::new(), event);
        }
    }
}

struct Draft {
    line: String,
    message: String,
    fields: String,
    target: String,
}

impl Draft {
    const fn new() -> Self {
        Self {
            line: String::new(),
            message: String::new(),
            fields: String::new(),
            target: String::new(),
        }
    }

    fn fill(&mut self, format: LogFormat, event: &Event<'_>, now: SystemTime) -> fmt::Result {
        for text in [
            &mut self.line,
            &mut self.message,
            &mut self.fields,
            &mut self.target,
        ] {
            text.clear();
        }
        let mut fields = Fields {
            draft: self,
            format,
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        let Self {
            line,
            message,
            fields,
            target,
        } = self;
        let target = if target.is_empty() {
            event.metadata().target()
        } else {
            target.as_str()
        };
        let prefix = if is_ours(target) { "ztunnel::" } else { "" };
        let level = level(*event.metadata().level());
        let time = humantime::format_rfc3339_micros(now);
        match format {
            LogFormat::Text => {
                write!(line, "{time}\t{level}\t{prefix}{target}\t{message}")?;
                if !fields.is_empty() {
                    write!(line, "\t{}", fields.trim_start())?;
                }
                line.push('\n');
            }
            LogFormat::Json => {
                write!(
                    line,
                    r#"{{"level":"{level}","time":"{time}","scope":"{prefix}"#
                )?;
                Escaped::new(line, Style::Quoted).write_str(target)?;
                writeln!(line, r#"","message":"{message}"{fields}}}"#)?;
            }
        }
        Ok(())
    }
}

const fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

struct Fields<'a> {
    draft: &'a mut Draft,
    format: LogFormat,
    result: fmt::Result,
}

impl Fields<'_> {
    /// Writes a number or a boolean, without quotes.
    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        let Some(out) = self.named(field) else { return };
        let result = write!(out, "{value}");
        self.result = self.result.and(result);
    }

    fn text(&mut self, field: &Field, quotes: bool, value: fmt::Arguments<'_>) {
        let json = self.format == LogFormat::Json;
        let style = if json || quotes {
            Style::Quoted
        } else {
            Style::Plain
        };
        let result = match field.name() {
            "message" if json => Escaped::new(&mut self.draft.message, style).write_fmt(value),
            "message" => Escaped::new(&mut self.draft.message, Style::Plain).write_fmt(value),
            // Records of the `log` crate have their target in a field, not in the metadata.
            "log.target" => Escaped::new(&mut self.draft.target, Style::Plain).write_fmt(value),
            _ => {
                let Some(out) = self.named(field) else { return };
                if style == Style::Quoted {
                    out.push('"');
                }
                let result = Escaped::new(out, style).write_fmt(value);
                if style == Style::Quoted {
                    out.push('"');
                }
                result
            }
        };
        self.result = self.result.and(result);
    }

    /// Writes the name of a field and returns the buffer for its value; `None` for the fields of
    /// the `log` bridge, which are not shown.
    fn named(&mut self, field: &Field) -> Option<&mut String> {
        let name = field.name();
        if name.starts_with("log.") {
            return None;
        }
        let out = &mut self.draft.fields;
        match self.format {
            LogFormat::Text => {
                out.push(' ');
                out.push_str(name);
                out.push('=');
            }
            LogFormat::Json => {
                out.push_str(",\"");
                if matches!(name, "level" | "time" | "scope") {
                    out.push_str("field.");
                }
                out.push_str(name);
                out.push_str("\":");
            }
        }
        Some(out)
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, false, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, true, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, true, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no notation for NaN and infinity.
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.text(field, true, format_args!("{value}"));
        }
    }
}
