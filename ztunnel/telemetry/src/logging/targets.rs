//! The names of log targets as users see and write them.
//!
//! `tracing` names a target after the module path, which begins with the crate: `node::proxy`. In
//! the log and in filters all crates of the proxy stand below `ztunnel`: `ztunnel::node::proxy`, so
//! that `ztunnel=debug` means all of them and a printed target can be used as a filter.

use std::collections::BTreeMap;

use tracing::level_filters::LevelFilter;

/// The name that stands for all crates of the proxy; also the binary's own crate.
const ROOT: &str = "ztunnel";

/// The library crates below `ztunnel/`.
const CRATES: [&str; 8] = [
    "admin",
    "api",
    "mesh",
    "node",
    "settings",
    "telemetry",
    "tunnel",
    "upstream",
];

/// Targets of earlier versions, below [`ROOT`], and the modules that log their events today.
const ALIASES: [(&str, &[&str]); 9] = [
    ("ca", &["upstream::ca"]),
    ("config", &["settings"]),
    ("dns", &["node::dns"]),
    ("hbone", &["tunnel::hbone"]),
    ("kernel", &["node::bpf"]),
    ("path", &["node::proxy", "node::fastpath"]),
    ("pods", &["node::pods", "node::enrollment"]),
    ("tls", &["tunnel::tls"]),
    ("xds", &["upstream::ads"]),
];

/// A module path below a name: `a::b` is below `a`, `ab` is not. Empty for the name itself.
fn below<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(name)?;
    (rest.is_empty() || rest.starts_with("::")).then_some(rest)
}

/// Whether an event of this target is printed with [`ROOT`] in front.
pub(super) fn is_ours(target: &str) -> bool {
    CRATES.iter().any(|name| below(target, name).is_some())
}

/// The module paths of a filter's targets. Where several targets of the filter mean the same
/// module, the most specific name decides: `ztunnel::node`, then an alias, then `ztunnel`.
pub(super) fn resolve(filter: &BTreeMap<String, LevelFilter>) -> BTreeMap<String, LevelFilter> {
    let (mut all, mut aliases, mut exact) = (Vec::new(), Vec::new(), Vec::new());
    for (target, level) in filter {
        let inside = below(target, ROOT).map(|rest| rest.trim_start_matches(':'));
        match inside {
            None => exact.push((target.clone(), *level)),
            Some("") => {
                all.extend(CRATES.map(|name| (name.to_owned(), *level)));
                exact.push((target.clone(), *level));
            }
            Some(inside) if is_ours(inside) => exact.push((inside.to_owned(), *level)),
            Some(inside) => {
                let alias = ALIASES
                    .iter()
                    .find_map(|(name, modules)| below(inside, name).map(|rest| (rest, *modules)));
                match alias {
                    Some((rest, modules)) => aliases.extend(
                        modules
                            .iter()
                            .map(|module| (format!("{module}{rest}"), *level)),
                    ),
                    // A module of the binary.
                    None => exact.push((target.clone(), *level)),
                }
            }
        }
    }
    // Of equal targets the last one stays.
    all.into_iter().chain(aliases).chain(exact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Filter;
    use tracing::Level;

    #[test]
    fn every_crate_below_ztunnel_is_in_the_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("Cargo.toml").exists())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, CRATES);
    }

    #[test]
    fn aliases_lead_to_our_crates_and_hide_none() {
        for (alias, modules) in ALIASES {
            assert!(!CRATES.contains(&alias), "{alias}");
            assert!(modules.iter().all(|module| is_ours(module)), "{alias}");
        }
    }

    #[test]
    fn only_our_crates_are_ours() {
        for (target, expected) in [
            ("node::proxy::outbound", true),
            ("tunnel", true),
            ("ztunnel::cli", false),
            ("access", false),
            ("h2::proto", false),
            ("nodejs", false),
        ] {
            assert_eq!(is_ours(target), expected, "{target}");
        }
    }

    #[test]
    fn a_filter_names_the_proxy_a_crate_a_module_or_an_older_target() {
        for (filter, target, expected) in [
            ("info", "node::proxy", false),
            ("info,ztunnel=debug", "node::proxy", true),
            ("info,ztunnel=debug", "upstream::ads::client", true),
            ("info,ztunnel=debug", "ztunnel::cli", true),
            ("info,ztunnel=debug", "h2::proto", false),
            (
                "info,ztunnel::node::proxy=debug",
                "node::proxy::relay",
                true,
            ),
            ("info,ztunnel::node::proxy=debug", "node::dns", false),
            ("info,node::proxy=debug", "node::proxy::relay", true),
            ("info,ztunnel::path=debug", "node::proxy::outbound", true),
            ("info,ztunnel::path=debug", "node::fastpath::events", true),
            ("info,ztunnel::path=debug", "node::dns", false),
            ("info,ztunnel::hbone=debug", "tunnel::hbone::pool", true),
            ("info,ztunnel::hbone=debug", "tunnel::tls", false),
            ("info,ztunnel::tls=debug", "tunnel::tls::issuer", true),
            ("info,ztunnel::kernel=debug", "node::bpf::maps", true),
            ("info,ztunnel::xds=debug", "upstream::ads", true),
            ("info,ztunnel::ca=debug", "upstream::ca::istiod", true),
            ("info,ztunnel::config=debug", "settings::watch", true),
            ("info,ztunnel::pods=debug", "node::pods::netns", true),
            ("info,ztunnel::dns::server=debug", "node::dns::server", true),
            ("info,h2=debug", "h2::proto", true),
            // The more specific target decides, whatever its name.
            ("ztunnel=debug,ztunnel::node=info", "node::proxy", false),
            ("ztunnel=debug,ztunnel::path=info", "node::proxy", false),
            ("ztunnel=info,ztunnel::path=debug", "node::proxy", true),
            (
                "ztunnel::path=debug,ztunnel::node::proxy=info",
                "node::proxy",
                false,
            ),
            ("ztunnel=debug,node=info", "node::proxy", false),
        ] {
            let targets = filter.parse::<Filter>().unwrap().targets();
            let enabled = targets.would_enable(target, &Level::DEBUG);
            assert_eq!(enabled, expected, "{filter}: {target}");
        }
    }
}
