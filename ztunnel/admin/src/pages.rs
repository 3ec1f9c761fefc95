//! The pages of the three servers: functions from a request to a response, without I/O.

use std::fmt::Write;

use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::http::{PageRequest, PageResponse};
use super::{Sources, access};
use telemetry::{Telemetry, build};

/// The server to which pages belong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pages {
    Admin,
    Metrics,
    Readiness,
}

struct Page {
    /// The allowed methods; GET includes HEAD.
    methods: &'static [Method],
    path: &'static str,
    purpose: &'static str,
}

const fn page(methods: &'static [Method], path: &'static str, purpose: &'static str) -> Page {
    Page {
        methods,
        path,
        purpose,
    }
}

const READ: &[Method] = &[Method::GET];
const CHANGE: &[Method] = &[Method::GET, Method::POST, Method::PUT];

const ADMIN: &[Page] = &[
    page(READ, "/", "this list"),
    page(
        READ,
        "/config_dump",
        "the mesh configuration, connections and settings of the proxy, as JSON",
    ),
    page(
        CHANGE,
        "/logging",
        "GET shows the log's filter; POST ?level=debug or ?level=ztunnel::node=debug,access=off \
         changes it; POST ?reset restores the filter of the start",
    ),
    page(
        READ,
        "/debug/pprof/profile",
        "501, with the command that profiles the CPU from the node",
    ),
    page(
        READ,
        "/debug/pprof/heap",
        "501, with the command that shows the memory from the node",
    ),
    page(
        &[Method::POST],
        "/quitquitquit",
        "stops the proxy; open connections may finish",
    ),
];
const METRICS: &[Page] = &[
    page(READ, "/metrics", "metrics as OpenMetrics text"),
    page(READ, "/stats/prometheus", "the same"),
];
const READINESS: &[Page] = &[page(
    READ,
    "/healthz/ready",
    "200 if ready, else 503 with the tasks that the proxy waits for",
)];

/// A profiler inside the process interrupts the threads that carry traffic by a signal and walks
/// their stacks in the handler, which is not safe at every instruction. perf(1) profiles from
/// outside.
const NO_PROFILE: &str = "This proxy does not profile itself, because that would interrupt the \
    threads that carry traffic. Profile it from the node instead:\n\n\
    perf record -F 99 -g -p <pid of ztunnel> -- sleep 10\n";
const NO_HEAP_PROFILE: &str = "This proxy has no profile of its heap: its allocator, mimalloc, does \
    not record call stacks, and jemalloc is not built in. From the node:\n\n\
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
        for Page {
            methods,
            path,
            purpose,
        } in self.list()
        {
            let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
            // Writing to a String cannot fail.
            if writeln!(text, "{:<13} {path:<20} {purpose}", methods.join("|")).is_err() {
                break;
            }
        }
        text
    }
}

/// Responds to a request to the server of these pages.
pub(super) fn respond(pages: Pages, request: &PageRequest, sources: &Sources) -> PageResponse {
    if matches!(pages, Pages::Admin)
        && let Err(refused) = access::check_site(request)
    {
        return PageResponse::text(StatusCode::FORBIDDEN, refused);
    }
    let wanted = pages.list().iter().find(|page| page.path == request.path);
    let Some(Page { methods, path, .. }) = wanted else {
        let text = format!("No such page. The pages are:\n\n{}", pages.index());
        return PageResponse::text(StatusCode::NOT_FOUND, text);
    };
    let reads = request.method == Method::HEAD && methods.contains(&Method::GET);
    if !reads && !methods.contains(&request.method) {
        let allowed: Vec<_> = methods.iter().map(Method::as_str).collect();
        let text = format!(
            "{path} allows {}, not {}.\n",
            allowed.join(", "),
            request.method
        );
        let mut response = PageResponse::text(StatusCode::METHOD_NOT_ALLOWED, text);
        response.allow = Some(allowed.join(", "));
        return response;
    }
    // The pages of the other servers are only read.
    let changes = !matches!(request.method, Method::GET | Method::HEAD);
    if changes && let Err(refused) = access::check_user(request) {
        tracing::warn!(path, client = %request.client, "refused: {}", refused.trim_end());
        return PageResponse::text(StatusCode::FORBIDDEN, refused);
    }
    match *path {
        "/" => PageResponse::text(StatusCode::OK, index(pages)),
        "/config_dump" => config_dump(sources),
        "/logging" => logging(request, sources),
        "/debug/pprof/profile" => {
            PageResponse::text(StatusCode::NOT_IMPLEMENTED, NO_PROFILE.into())
        }
        "/debug/pprof/heap" => {
            PageResponse::text(StatusCode::NOT_IMPLEMENTED, NO_HEAP_PROFILE.into())
        }
        "/quitquitquit" => {
            tracing::info!("a request to /quitquitquit stops the proxy");
            (sources.quit)();
            PageResponse::text(StatusCode::OK, "shutting down\n".into())
        }
        "/metrics" | "/stats/prometheus" => PageResponse {
            content_type: Telemetry::CONTENT_TYPE,
            ..PageResponse::text(StatusCode::OK, sources.telemetry.encode())
        },
        _ => ready(sources),
    }
}

fn index(pages: Pages) -> String {
    format!("ztunnel {}\n\n{}", build::version(), pages.index())
}

fn config_dump(sources: &Sources) -> PageResponse {
    let mut sections = Map::new();
    sections.insert("version".into(), Value::from(build::version()));
    for dump in &sources.dumps {
        sections.insert(dump.section().into(), dump.dump());
    }
    PageResponse {
        content_type: "application/json",
        ..PageResponse::text(StatusCode::OK, format!("{:#}\n", Value::Object(sections)))
    }
}

fn logging(request: &PageRequest, sources: &Sources) -> PageResponse {
    let Some(log) = &sources.log else {
        return PageResponse::text(
            StatusCode::NOT_IMPLEMENTED,
            "the filter cannot be shown or changed: this process does not own its log\n".into(),
        );
    };
    let change = match query(&request.query) {
        Ok(FilterChange::None) => None,
        Ok(_) if request.method == Method::GET || request.method == Method::HEAD => {
            let text = "GET only shows the log's filter; use POST to change it.\n";
            return PageResponse::text(StatusCode::METHOD_NOT_ALLOWED, text.into());
        }
        Ok(FilterChange::Reset) => Some(log.reset()),
        Ok(FilterChange::Level(text)) => match log.filter().with(&text) {
            Ok(filter) => Some(log.set(filter)),
            Err(error) => return PageResponse::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
        Err(text) => return PageResponse::text(StatusCode::BAD_REQUEST, text),
    };
    match change.transpose() {
        Ok(changed) => {
            let filter = log.filter();
            if changed.is_some() {
                tracing::info!(%filter, "the log's filter was changed");
            }
            PageResponse::text(StatusCode::OK, format!("current log level is {filter}\n"))
        }
        Err(error) => PageResponse::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

enum FilterChange {
    None,
    Reset,
    Level(String),
}

fn query(query: &str) -> Result<FilterChange, String> {
    let mut change = FilterChange::None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        // A filter contains `=` itself: only the first one separates.
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        change = match key {
            // `istioctl ztunnel-config log` without a level: Istio's ztunnel answers with the filter.
            "level" if value.is_empty() => change,
            "level" => FilterChange::Level(unescape(value)?),
            "reset" => FilterChange::Reset,
            _ => {
                return Err(format!(
                    "unknown parameter {key:?}: expected level or reset\n"
                ));
            }
        };
    }
    Ok(change)
}

/// Decodes percent-encoding (RFC 3986, section 2.1).
fn unescape(text: &str) -> Result<String, String> {
    let refuse = |_| "the level is not percent-encoded UTF-8\n".to_owned();
    let decoded = percent_decode_str(text).decode_utf8().map_err(refuse)?;
    Ok(decoded.into_owned())
}

fn ready(sources: &Sources) -> PageResponse {
    let pending = sources.readiness.pending();
    if pending.is_empty() {
        return PageResponse::text(StatusCode::OK, "ready\n".into());
    }
    let text = format!("not ready, waiting for: {}\n", pending.join(", "));
    PageResponse::text(StatusCode::SERVICE_UNAVAILABLE, text)
}
