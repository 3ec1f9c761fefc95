//! Decodes `istio.security.Authorization`.

use std::borrow::Cow;
use std::sync::Arc;

use ipnet::IpNet;

use super::DecodedPolicy;
use super::fields::{FieldError, or_default, port_or_zero, range, truncated};
use super::unknown_fields::{ClauseFields, RuleFields};
use api::istio::security as wire;
use mesh::{
    Action, Clause, Interner, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};

pub(super) fn build(
    policy: &wire::Authorization,
    fields: &[RuleFields],
    texts: &mut Interner,
) -> Result<DecodedPolicy, FieldError> {
    for (field, text) in [("name", &policy.name), ("namespace", &policy.namespace)] {
        if text.contains('/') || (field == "name" && text.is_empty()) {
            let found = truncated(text);
            let problem = format_args!("{found:?} is not a valid {field} of a policy");
            return Err(FieldError::new(problem).at(field));
        }
    }
    let mut decoder = RuleDecoder {
        action: action(policy.action)?,
        texts,
        warnings: Vec::new(),
    };
    let no_unknown = RuleFields::default();
    let mut rules = Vec::with_capacity(policy.rules.len());
    for (at, each) in policy.rules.iter().enumerate() {
        let fields = fields.get(at).unwrap_or(&no_unknown);
        let path = format!("rules[{at}]");
        let rule = decoder.rule(each, fields, &path);
        rules.extend(rule.map_err(|error| error.at(path))?);
    }
    let (action, warnings) = (decoder.action, decoder.warnings);
    Ok(DecodedPolicy {
        policy: Policy {
            name: texts.get(&policy.name),
            namespace: texts.get(or_default(&policy.namespace, "default")),
            scope: scope(policy.scope)?,
            action,
            rules,
            dry_run: policy.dry_run,
            has_unknown_conditions: !warnings.is_empty(),
        },
        warnings,
    })
}

fn action(number: i32) -> Result<Action, FieldError> {
    match wire::Action::try_from(number) {
        Ok(wire::Action::Allow) => Ok(Action::Allow),
        Ok(wire::Action::Deny) => Ok(Action::Deny),
        Err(_) => Err(FieldError::new(format_args!("{number} is an unknown value")).at("action")),
    }
}

fn scope(number: i32) -> Result<PolicyScope, FieldError> {
    match wire::Scope::try_from(number) {
        Ok(wire::Scope::Global) => Ok(PolicyScope::Global),
        Ok(wire::Scope::Namespace) => Ok(PolicyScope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(PolicyScope::WorkloadSelector),
        Err(_) => Err(FieldError::new(format_args!("{number} is an unknown value")).at("scope")),
    }
}

/// A match without the conditions that contain a text comparison of an unknown kind. Such a condition
/// is unknown as a whole.
fn without_unknown_comparisons(whole: &wire::Match) -> Cow<'_, wire::Match> {
    let has_unknown =
        |values: &[wire::StringMatch]| values.iter().any(|value| value.match_type.is_none());
    let unknown = [
        has_unknown(&whole.namespaces),
        has_unknown(&whole.not_namespaces),
        has_unknown(&whole.principals),
        has_unknown(&whole.not_principals),
    ];
    if unknown == [false; 4] {
        return Cow::Borrowed(whole);
    }
    let mut known = whole.clone();
    let conditions = [
        &mut known.namespaces,
        &mut known.not_namespaces,
        &mut known.principals,
        &mut known.not_principals,
    ];
    for (condition, is_unknown) in conditions.into_iter().zip(unknown) {
        if is_unknown {
            condition.clear();
        }
    }
    Cow::Owned(known)
}

/// Decodes the rules of one policy.
struct RuleDecoder<'a> {
    action: Action,
    texts: &'a mut Interner,
    warnings: Vec<String>,
}

impl RuleDecoder<'_> {
    /// Decodes a rule. `None` if the rule can never match.
    fn rule(
        &mut self,
        rule: &wire::Rule,
        fields: &RuleFields,
        path: &str,
    ) -> Result<Option<Rule>, FieldError> {
        if fields.has_unknown {
            self.warn(path);
        }
        let mut can_match = !fields.has_unknown || self.action == Action::Deny;
        let no_unknown = ClauseFields::default();
        let mut decoded = Vec::with_capacity(rule.clauses.len());
        for (at, each) in rule.clauses.iter().enumerate() {
            let fields = fields.clauses.get(at).unwrap_or(&no_unknown);
            let step = format!("clauses[{at}]");
            let clause = self.clause(each, fields, &format!("{path}.{step}"));
            match clause.map_err(|error| error.at(step))? {
                Some(clause) => decoded.push(clause),
                None => can_match = false,
            }
        }
        Ok(can_match.then_some(decoded))
    }

    /// Decodes a clause. `None` if the clause can never match. An empty clause always matches, so a
    /// clause must not become empty because its matches are unknown.
    fn clause(
        &mut self,
        clause: &wire::Clause,
        fields: &ClauseFields,
        path: &str,
    ) -> Result<Option<Clause>, FieldError> {
        if fields.has_unknown {
            self.warn(path);
        }
        if fields.has_unknown && self.action == Action::Allow {
            return Ok(None);
        }
        let mut always = clause.matches.is_empty() || fields.has_unknown;
        let mut decoded = Vec::with_capacity(clause.matches.len());
        for (at, each) in clause.matches.iter().enumerate() {
            let step = format!("matches[{at}]");
            let comparable = without_unknown_comparisons(each);
            let known = self
                .conditions(&comparable)
                .map_err(|error| error.at(&step))?;
            let has_unknown = fields.unknown_in_matches.get(at).copied().unwrap_or(false)
                || matches!(comparable, Cow::Owned(_));
            if has_unknown {
                self.warn(&format!("{path}.{step}"));
            }
            match self.action {
                Action::Allow if has_unknown => {}
                Action::Deny if has_unknown && known.is_empty() => always = true,
                Action::Allow | Action::Deny => decoded.push(known),
            }
        }
        if always {
            return Ok(Some(Clause::new()));
        }
        Ok((!decoded.is_empty()).then_some(decoded))
    }

    fn warn(&mut self, path: &str) {
        let consequence = match self.action {
            Action::Allow => "an ALLOW policy never matches by it",
            Action::Deny => "a DENY policy is enforced without it",
        };
        self.warnings.push(format!(
            "{path} contains an unknown condition: {consequence}"
        ));
    }

    fn conditions(&mut self, wire: &wire::Match) -> Result<Match, FieldError> {
        Ok(Match {
            namespaces: self.strings("namespaces", &wire.namespaces, unchanged)?,
            not_namespaces: self.strings("not_namespaces", &wire.not_namespaces, unchanged)?,
            principals: self.strings("principals", &wire.principals, principal)?,
            not_principals: self.strings("not_principals", &wire.not_principals, principal)?,
            service_accounts: self.accounts("service_accounts", &wire.service_accounts)?,
            not_service_accounts: self
                .accounts("not_service_accounts", &wire.not_service_accounts)?,
            source_ips: ranges("source_ips", &wire.source_ips)?,
            not_source_ips: ranges("not_source_ips", &wire.not_source_ips)?,
            destination_ips: ranges("destination_ips", &wire.destination_ips)?,
            not_destination_ips: ranges("not_destination_ips", &wire.not_destination_ips)?,
            destination_ports: ports("destination_ports", &wire.destination_ports)?,
            not_destination_ports: ports("not_destination_ports", &wire.not_destination_ports)?,
            http: None,
        })
    }

    fn strings(
        &mut self,
        field: &str,
        values: &[wire::StringMatch],
        normalize: impl Fn(&str) -> &str,
    ) -> Result<Vec<StringMatch>, FieldError> {
        use wire::string_match::MatchType;
        decode_each(field, values, |value| {
            let mut text = |text: &str| -> Arc<str> { self.texts.get(text) };
            Ok(match &value.match_type {
                Some(MatchType::Exact(exact)) => StringMatch::Exact(text(normalize(exact))),
                Some(MatchType::Prefix(prefix)) => StringMatch::Prefix(text(normalize(prefix))),
                Some(MatchType::Suffix(suffix)) => StringMatch::Suffix(text(suffix)),
                Some(MatchType::Presence(())) => StringMatch::Presence,
                None => return Err(FieldError::new("the kind of text comparison is unknown")),
            })
        })
    }

    fn accounts(
        &mut self,
        field: &str,
        values: &[wire::ServiceAccountMatch],
    ) -> Result<Vec<ServiceAccountMatch>, FieldError> {
        decode_each(field, values, |value| {
            if value.namespace.is_empty() || value.service_account.is_empty() {
                return Err(FieldError::new(
                    "expected a namespace and a service account",
                ));
            }
            Ok(ServiceAccountMatch {
                namespace: self.texts.get(&value.namespace),
                service_account: self.texts.get(&value.service_account),
            })
        })
    }
}

fn unchanged(text: &str) -> &str {
    text
}

/// A principal without `spiffe://`: principals are compared without the scheme.
fn principal(text: &str) -> &str {
    text.strip_prefix("spiffe://").unwrap_or(text)
}

fn ranges(field: &str, values: &[wire::Address]) -> Result<Vec<IpNet>, FieldError> {
    decode_each(field, values, |value| range(&value.address, value.length))
}

fn ports(field: &str, values: &[u32]) -> Result<Vec<u16>, FieldError> {
    decode_each(field, values, |&value| port_or_zero(value))
}

/// Decodes the elements of a repeated field.
fn decode_each<T, U>(
    field: &str,
    values: &[T],
    mut decode: impl FnMut(&T) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    values
        .iter()
        .enumerate()
        .map(|(at, value)| decode(value).map_err(|error| error.at(format_args!("{field}[{at}]"))))
        .collect()
}
