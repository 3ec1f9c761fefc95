//! The reference of all settings: the table from which docs/settings.md is generated.
//!
//! Defaults are read from the program's own defaults, and a test compares the keys with those that
//! the settings file accepts, so that table and program agree.

mod table;

use super::units::show;
use super::{LogFormat, Settings};

/// One setting.
pub struct Row {
    /// Its key in the settings file, sections separated by dots.
    pub key: &'static str,
    /// The type and unit of its value.
    pub unit: &'static str,
    /// Its environment variable; empty if it has none.
    pub variable: &'static str,
    /// Its effect.
    pub meaning: &'static str,
    /// Its default.
    default: Default,
}

#[derive(Clone, Copy)]
enum Default {
    /// A value of the program's defaults.
    Shown(fn(&Settings) -> String),
    /// A description.
    Words(&'static str),
}

impl Row {
    /// Its default, as text.
    #[must_use]
    pub fn default_text(&self) -> String {
        match self.default {
            Default::Shown(show) => format!("`{}`", show(&Settings::initial())),
            Default::Words(words) => words.to_owned(),
        }
    }
}

/// Every setting, in the order of the document.
#[must_use]
pub fn rows() -> Vec<Row> {
    let row = |&(key, unit, variable, default, meaning): &table::Columns| Row {
        key,
        unit,
        variable,
        meaning,
        default,
    };
    table::TABLES.into_iter().flatten().map(row).collect()
}

/// The document docs/settings.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Command-line flags take precedence over the environment, the environment over the file, \
         the file over the defaults. Unknown keys are errors. Durations have a unit (`10s`, `5m`, \
         `24h`); sizes are `2MiB`, `64KiB` or a number of bytes. Paths are relative to the working \
         directory of the proxy.\n\n\
         `FAKE_CA=true` in the environment is an error unless `ca.local` is set. `INSTANCE_IP`, \
         `POD_NAME`, `POD_NAMESPACE`, `CLUSTER_DOMAIN` and each `ISTIO_META_<key>` are sent to the \
         control plane as the identity of the proxy. Other variables of the Istio chart that are \
         not in this table have no effect.\n\n\
         Changes of `node`, `clusterId`, `network`, `trustDomain`, `mode`, `nodeAgent`, `ca`, `xds`, \
         `crl`, the listeners, `hbone`, `keepalive`, `threads`, `log` and most of `capture` take \
         effect after a restart; the log names them when they differ.\n\n\
         This page is generated: `UPDATE=1 cargo test -p settings --lib reference`.\n\n\
         | key | value | default | variable | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in rows() {
        let variable = if row.variable.is_empty() {
            String::new()
        } else {
            format!("`{}`", row.variable)
        };
        let default = row.default_text();
        let line = format!(
            "| `{}` | {} | {default} | {variable} | {} |",
            row.key, row.unit, row.meaning
        );
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Address ranges as text.
fn listed(ranges: &[ipnet::IpNet]) -> String {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    ranges.join(", ")
}
