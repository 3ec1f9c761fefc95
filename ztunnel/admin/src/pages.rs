//! The pages of the three servers: from a request to an answer, without I/O.

use std::fmt::Write;

use hyper::{Method, StatusCode};
use serde_json::{Map, Value};

use super::Sources;
use super::http::{Answer, Ask};
use telemetry::Telemetry;

/// Which server's pages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pages {
    Admin,
    Metrics,
    Readiness,
}

/// A page: the methods it takes besides HEAD, its path, and what it is for.
type Page = (&'static [Method], &'static str, &'static str);

const READ: &[Method] = &[Method::GET];
const CHANGE: &[Method] = &[Method::GET, Method::POST, Method::PUT];

const ADMIN: &[Page] = &[
    (READ, "/", "this list"),
    (
        READ,
        "/config_dump",
        "what the proxy knows and runs with, as JSON",
    ),
    (
        CHANGE,
        "/logging",
        "GET shows the log's filter; POST ?level=debug or ?level=ztunnel::path=debug,access=off \
         changes it; POST ?reset returns to that of the start",
    ),
    (
        READ,
        "/debug/pprof/profile",
        "501: no profile of the CPU is taken here, and why",
    ),
    (
        READ,
        "/debug/pprof/heap",
        "501: no profile of the heap is taken here, and why",
    ),
    (
        &[Method::POST],
        "/quitquitquit",
        "stops the proxy, letting connections finish",
    ),
];
const METRICS: &[Page] = &[
    (READ, "/metrics", "metrics as OpenMetrics text"),
    (READ, "/stats/prometheus", "the same"),
];
const READINESS: &[Page] = &[(
    READ,
    "/healthz/ready",
    "200 when ready, otherwise 503 and what is missing",
)];

/// A profiler inside the process interrupts the threads that carry traffic by a signal and walks
/// their stacks in its handler, which is not safe whatever they were doing. perf(1) does it from
/// outside.
const NO_PROFILE: &str = "This proxy does not profile itself: that would interrupt the threads \
    that carry traffic. Profile it from the node instead:\n\n\
    perf record -F 99 -g -p <pid of ztunnel> -- sleep 10\n";
const NO_HEAP_PROFILE: &str = "This proxy has no profile of its heap: its allocator, mimalloc, does \
    not record who allocates, and jemalloc is not built in. From the node:\n\n\
    grep Rss /proc/<pid of ztunnel>/smaps_rollup\n";

impl Pages {
    const fn list(self) -> &'static [Page] {
        match self {
            Self::Admin => ADMIN,
            Self::Metrics => METRICS,
            Self::Readiness => READINESS,
        }
    }

    fn index(self) -> String {
        let mut text = String::new();
        for (methods, path, what) in self.list() {
            let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
            // Writing to a String cannot fail.
            if writeln!(text, "{:<13} {path:<20} {what}", methods.join("|")).is_err() {
                break;
            }
        }
        text
    }
}

/// Answers a request to the server whose pages these are.
pub(super) fn answer(pages: Pages, ask: &Ask, sources: &Sources) -> Answer {
    let Some((methods, path, _)) = pages.list().iter().find(|(_, path, _)| *path == ask.path)
    else {
        let text = format!("There is no such page. These exist:\n\n{}", pages.index());
        return Answer::text(StatusCode::NOT_FOUND, text);
    };
    let reads = ask.method == Method::HEAD && methods.contains(&Method::GET);
    if !reads && !methods.contains(&ask.method) {
        let allowed: Vec<_> = methods.iter().map(Method::as_str).collect();
        let text = format!("{path} takes {}, not {}.\n", allowed.join(", "), ask.method);
        let mut answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, text);
        answer.allow = Some(allowed.join(", "));
        return answer;
    }
    match *path {
        "/" => Answer::text(StatusCode::OK, index(pages)),
        "/config_dump" => config_dump(sources),
        "/logging" => logging(ask, sources),
        "/debug/pprof/profile" => Answer::text(StatusCode::NOT_IMPLEMENTED, NO_PROFILE.into()),
        "/debug/pprof/heap" => Answer::text(StatusCode::NOT_IMPLEMENTED, NO_HEAP_PROFILE.into()),
        "/quitquitquit" => {
            tracing::info!("asked to stop over HTTP");
            (sources.quit)();
            Answer::text(StatusCode::OK, "shutting down\n".into())
        }
        "/metrics" | "/stats/prometheus" => Answer {
            content_type: Telemetry::CONTENT_TYPE,
            ..Answer::text(StatusCode::OK, sources.telemetry.encode())
        },
        _ => ready(sources),
    }
}

fn index(pages: Pages) -> String {
    format!("ztunnel {}\n\n{}", env!("CARGO_PKG_VERSION"), pages.index())
}

fn config_dump(sources: &Sources) -> Answer {
    let mut sections = Map::new();
    sections.insert("version".into(), Value::from(env!("CARGO_PKG_VERSION")));
    for dump in &sources.dumps {
        sections.insert(dump.section().into(), dump.dump());
    }
    Answer {
        content_type: "application/json",
        ..Answer::text(StatusCode::OK, format!("{:#}\n", Value::Object(sections)))
    }
}

fn logging(ask: &Ask, sources: &Sources) -> Answer {
    let Some(log) = &sources.log else {
        return Answer::text(
            StatusCode::NOT_IMPLEMENTED,
            "this process was started without a log of its own\n".into(),
        );
    };
    let wanted = match query(&ask.query) {
        Ok(Wanted::Show) => None,
        Ok(_) if ask.method == Method::GET || ask.method == Method::HEAD => {
            let text = "GET only shows the log's filter; use POST to change it.\n";
            return Answer::text(StatusCode::METHOD_NOT_ALLOWED, text.into());
        }
        Ok(Wanted::Reset) => Some(log.reset()),
        Ok(Wanted::Level(text)) => match log.filter().with(&text) {
            Ok(filter) => Some(log.set(filter)),
            Err(error) => return Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
        Err(text) => return Answer::text(StatusCode::BAD_REQUEST, text),
    };
    match wanted.transpose() {
        Ok(changed) => {
            let filter = log.filter();
            if changed.is_some() {
                tracing::info!(%filter, "the log's filter was changed");
            }
            Answer::text(StatusCode::OK, format!("current log level is {filter}\n"))
        }
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

enum Wanted {
    Show,
    Reset,
    Level(String),
}

fn query(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted::Show;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        // A filter holds `=` itself: only the first one separates.
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        wanted = match key {
            "level" => Wanted::Level(unescape(value)?),
            "reset" => Wanted::Reset,
            _ => {
                return Err(format!(
                    "unknown parameter {key:?}: expected level or reset\n"
                ));
            }
        };
    }
    Ok(wanted)
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn unescape(text: &str) -> Result<String, String> {
    let refuse = || "the level is not well-formed percent-encoded UTF-8\n".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digit = |at: usize| {
            after
                .get(at)
                .and_then(|&byte| char::from(byte).to_digit(16))
        };
        let (high, low) = digit(0).zip(digit(1)).ok_or_else(refuse)?;
        bytes.push(u8::try_from(high * 16 + low).map_err(|_too_large| refuse())?);
        rest = after.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_not_utf8| refuse())
}

fn ready(sources: &Sources) -> Answer {
    let pending = sources.readiness.pending();
    if pending.is_empty() {
        return Answer::text(StatusCode::OK, "ready\n".into());
    }
    let text = format!("not ready, waiting for: {}\n", pending.join(", "));
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
}
