//! The reference of all settings: one table that the documentation is made of.
//!
//! Defaults are not written here but read from the defaults in force, and a test holds the keys
//! against those that the settings file knows, so the table cannot say anything else than the
//! program does.

mod table;

use super::units::show;
use super::{LogFormat, Settings};

/// One setting.
pub struct Row {
    /// Its key in the settings file, sections separated by dots.
    pub key: &'static str,
    /// What its value is and in which unit.
    pub unit: &'static str,
    /// Its variable in the environment; empty where there is none.
    pub variable: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Its default.
    default: Default,
}

#[derive(Clone, Copy)]
enum Default {
    /// What the defaults in force hold.
    Shown(fn(&Settings) -> String),
    /// Said in words.
    Words(&'static str),
}

impl Row {
    /// Its default, as it would be written.
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

/// The document: SETTINGS.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Flags of the command line go before the environment, the environment before the file, \
         the file before the defaults. Unknown keys are refused. Durations are written with their \
         unit (`10s`, `5m`, `24h`), sizes as `2MiB`, `64KiB` or a number of bytes. Paths are relative \
         to the directory the proxy was started in.\n\n\
         Of the environment, `FAKE_CA=true` is refused unless `ca.local` is set. `INSTANCE_IP`, \
         `POD_NAME`, `POD_NAMESPACE`, `CLUSTER_DOMAIN` and each `ISTIO_META_<key>` tell the control \
         plane who asks. Other names of the Istio chart that are not in this table mean nothing \
         here.\n\n\
         `node`, `clusterId`, `network`, `trustDomain`, `mode`, `nodeAgent`, `ca`, `xds`, `crl`, the \
         listeners, `hbone`, `keepalive`, `threads`, `log` and most of `capture` change only with a \
         restart; the log says so when they differ.\n\n\
         This table is generated: `UPDATE=1 cargo test -p ztunnel --lib config::`.\n\n\
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

/// Address ranges as a default shows them.
fn listed(ranges: &[ipnet::IpNet]) -> String {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    ranges.join(", ")
}
