//! Policies of the local file.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_yaml_ng::Value;

use super::fields::{BadField, or};
use super::scalars::{Port, Range, named};
use crate::{Action, Interner, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};

/// A policy of the local file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyEntry {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(deserialize_with = "scope")]
    scope: PolicyScope,
    #[serde(deserialize_with = "action")]
    action: Action,
    #[serde(default)]
    rules: Vec<Vec<Vec<MatchEntry>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MatchEntry {
    namespaces: Vec<Text>,
    not_namespaces: Vec<Text>,
    principals: Vec<Text>,
    not_principals: Vec<Text>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    source_ips: Vec<Range>,
    not_source_ips: Vec<Range>,
    destination_ips: Vec<Range>,
    not_destination_ips: Vec<Range>,
    destination_ports: Vec<Port>,
    not_destination_ports: Vec<Port>,
}

/// `{exact: x}`, `{prefix: x}`, `{suffix: x}` or `{presence: {}}`, in upper or lower case, as a
/// mapping or as a YAML tag (`!Exact x`, how serde writes the variant of an enum).
#[derive(Debug, Clone)]
struct Text(StringMatch);

/// `{namespace: n, serviceAccount: s}` or `n/s`.
#[derive(Debug, Clone)]
struct Account {
    namespace: String,
    service_account: String,
}

impl PolicyEntry {
    pub(super) fn build(&self, texts: &mut Interner) -> Result<Policy, BadField> {
        for (field, text) in [("name", &self.name), ("namespace", &self.namespace)] {
            if text.contains('/') || (field == "name" && text.is_empty()) {
                let problem = format!("{text:?} is not a {field} of a policy");
                return Err(BadField { field, problem });
            }
        }
        let namespace = or(&self.namespace, "default");
        let rule = |rule: &Vec<Vec<MatchEntry>>| {
            rule.iter()
                .map(|clause| clause.iter().map(MatchEntry::build).collect())
                .collect()
        };
        Ok(Policy {
            name: texts.get(&self.name),
            namespace: texts.get(namespace),
            scope: self.scope,
            action: self.action,
            rules: self.rules.iter().map(rule).collect(),
            dry_run: self.dry_run,
            has_unknown_conditions: false,
        })
    }
}

impl MatchEntry {
    fn build(&self) -> Match {
        let plain = |texts: &[Text]| texts.iter().map(|text| text.0.clone()).collect();
        let principals =
            |texts: &[Text]| texts.iter().map(|text| without_scheme(&text.0)).collect();
        let accounts = |accounts: &[Account]| accounts.iter().map(Account::build).collect();
        let ranges = |ranges: &[Range]| ranges.iter().map(|range| range.0).collect();
        let ports = |ports: &[Port]| ports.iter().map(|port| port.0).collect();
        Match {
            namespaces: plain(&self.namespaces),
            not_namespaces: plain(&self.not_namespaces),
            principals: principals(&self.principals),
            not_principals: principals(&self.not_principals),
            service_accounts: accounts(&self.service_accounts),
            not_service_accounts: accounts(&self.not_service_accounts),
            source_ips: ranges(&self.source_ips),
            not_source_ips: ranges(&self.not_source_ips),
            destination_ips: ranges(&self.destination_ips),
            not_destination_ips: ranges(&self.not_destination_ips),
            destination_ports: ports(&self.destination_ports),
            not_destination_ports: ports(&self.not_destination_ports),
            http: None,
        }
    }
}

impl Account {
    fn build(&self) -> ServiceAccountMatch {
        ServiceAccountMatch {
            namespace: self.namespace.as_str().into(),
            service_account: self.service_account.as_str().into(),
        }
    }
}

/// Principals are compared without `spiffe://`; a principal with it would never match.
fn without_scheme(text: &StringMatch) -> StringMatch {
    let strip = |text: &std::sync::Arc<str>| text.strip_prefix("spiffe://").unwrap_or(text).into();
    match text {
        StringMatch::Exact(text) => StringMatch::Exact(strip(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(strip(text)),
        other => other.clone(),
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        read_text(&value).map(Self).ok_or_else(|| {
            D::Error::custom("expected {exact: …}, {prefix: …}, {suffix: …} or {presence: {}}")
        })
    }
}

fn read_text(value: &Value) -> Option<StringMatch> {
    let (kind, argument) = match value {
        Value::Tagged(tagged) => (tagged.tag.to_string(), &tagged.value),
        Value::Mapping(mapping) if mapping.len() == 1 => {
            let (kind, argument) = mapping.iter().next()?;
            (kind.as_str()?.to_owned(), argument)
        }
        Value::String(kind) => (kind.clone(), &Value::Null),
        _ => return None,
    };
    let text = argument.as_str().filter(|text| !text.is_empty());
    match kind.trim_start_matches('!').to_lowercase().as_str() {
        "exact" => Some(StringMatch::Exact(text?.into())),
        "prefix" => Some(StringMatch::Prefix(text?.into())),
        "suffix" => Some(StringMatch::Suffix(text?.into())),
        "presence" if is_nothing(argument) => Some(StringMatch::Presence),
        _ => None,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(true) => true,
        Value::Mapping(mapping) => mapping.is_empty(),
        _ => false,
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        read_account(&value).ok_or_else(|| {
            D::Error::custom("expected {namespace: …, serviceAccount: …} or namespace/account")
        })
    }
}

fn read_account(value: &Value) -> Option<Account> {
    let (namespace, account) = if let Some(text) = value.as_str() {
        text.split_once('/')?
    } else {
        let mapping = value.as_mapping().filter(|mapping| mapping.len() == 2)?;
        let text = |name: &str| mapping.get(name).and_then(Value::as_str);
        (text("namespace")?, text("serviceAccount")?)
    };
    let good = !namespace.is_empty() && !account.is_empty() && !account.contains('/');
    let (namespace, service_account) = (namespace.to_owned(), account.to_owned());
    good.then_some(Account {
        namespace,
        service_account,
    })
}

fn scope<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PolicyScope, D::Error> {
    use PolicyScope::{Global, Namespace, WorkloadSelector};
    let names = [
        ("Global", Global),
        ("Namespace", Namespace),
        ("WorkloadSelector", WorkloadSelector),
    ];
    named(deserializer, &names)
}

fn action<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Action, D::Error> {
    named(
        deserializer,
        &[("Allow", Action::Allow), ("Deny", Action::Deny)],
    )
}
