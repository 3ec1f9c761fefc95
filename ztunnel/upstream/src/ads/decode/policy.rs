//! `istio.security.Authorization`.

use std::borrow::Cow;
use std::sync::Arc;

use ipnet::IpNet;

use super::DecodedPolicy;
use super::fields::{BadField, or, port_or_zero, range, shown};
use super::foreign::{ForeignClause, ForeignRule};
use api::istio::security as wire;
use mesh::{
    Action, Clause, Interner, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};

pub(super) fn build(
    policy: &wire::Authorization,
    foreign: &[ForeignRule],
    texts: &mut Interner,
) -> Result<DecodedPolicy, BadField> {
    for (field, text) in [("name", &policy.name), ("namespace", &policy.namespace)] {
        if text.contains('/') || (field == "name" && text.is_empty()) {
            let found = shown(text);
            let problem = format_args!("{found:?} is not a {field} of a policy");
            return Err(BadField::new(problem).at(field));
        }
    }
    let mut reader = Reader {
        action: action(policy.action)?,
        texts,
        doubts: Vec::new(),
    };
    let nothing = ForeignRule::default();
    let mut rules = Vec::with_capacity(policy.rules.len());
    for (at, each) in policy.rules.iter().enumerate() {
        let foreign = foreign.get(at).unwrap_or(&nothing);
        let path = format!("rules[{at}]");
        let rule = reader.rule(each, foreign, &path);
        rules.extend(rule.map_err(|bad| bad.at(path))?);
    }
    let (action, doubts) = (reader.action, reader.doubts);
    Ok(DecodedPolicy {
        policy: Policy {
            name: texts.get(&policy.name),
            namespace: texts.get(or(&policy.namespace, "default")),
            scope: scope(policy.scope)?,
            action,
            rules,
            dry_run: policy.dry_run,
            has_unknown_conditions: !doubts.is_empty(),
        },
        doubts,
    })
}

fn action(number: i32) -> Result<Action, BadField> {
    match wire::Action::try_from(number) {
        Ok(wire::Action::Allow) => Ok(Action::Allow),
        Ok(wire::Action::Deny) => Ok(Action::Deny),
        Err(_) => Err(BadField::new(format_args!("{number} is not known here")).at("action")),
    }
}

fn scope(number: i32) -> Result<PolicyScope, BadField> {
    match wire::Scope::try_from(number) {
        Ok(wire::Scope::Global) => Ok(PolicyScope::Global),
        Ok(wire::Scope::Namespace) => Ok(PolicyScope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(PolicyScope::WorkloadSelector),
        Err(_) => Err(BadField::new(format_args!("{number} is not known here")).at("scope")),
    }
}

/// A match without the kinds of which a text is compared in a way that is not known here: what such
/// a kind asks for is not known as a whole.
fn readable(kinds: &wire::Match) -> Cow<'_, wire::Match> {
    let odd = |values: &[wire::StringMatch]| values.iter().any(|value| value.match_type.is_none());
    let found = [
        odd(&kinds.namespaces),
        odd(&kinds.not_namespaces),
        odd(&kinds.principals),
        odd(&kinds.not_principals),
    ];
    if found == [false; 4] {
        return Cow::Borrowed(kinds);
    }
    let mut rest = kinds.clone();
    let all = [
        &mut rest.namespaces,
        &mut rest.not_namespaces,
        &mut rest.principals,
        &mut rest.not_principals,
    ];
    for (values, odd) in all.into_iter().zip(found) {
        if odd {
            values.clear();
        }
    }
    Cow::Owned(rest)
}

struct Reader<'a> {
    action: Action,
    texts: &'a mut Interner,
    doubts: Vec<String>,
}

impl Reader<'_> {
    /// `None` where the rule never matches.
    fn rule(
        &mut self,
        rule: &wire::Rule,
        foreign: &ForeignRule,
        path: &str,
    ) -> Result<Option<Rule>, BadField> {
        if foreign.itself {
            self.doubt(path);
        }
        let mut matches = !foreign.itself || self.action == Action::Deny;
        let nothing = ForeignClause::default();
        let mut read = Vec::with_capacity(rule.clauses.len());
        for (at, each) in rule.clauses.iter().enumerate() {
            let foreign = foreign.clauses.get(at).unwrap_or(&nothing);
            let step = format!("clauses[{at}]");
            let clause = self.clause(each, foreign, &format!("{path}.{step}"));
            match clause.map_err(|bad| bad.at(step))? {
                Some(clause) => read.push(clause),
                None => matches = false,
            }
        }
        Ok(matches.then_some(read))
    }

    /// `None` where the clause never matches. An empty clause always does, so the last match must
    /// not simply be left out.
    fn clause(
        &mut self,
        clause: &wire::Clause,
        foreign: &ForeignClause,
        path: &str,
    ) -> Result<Option<Clause>, BadField> {
        if foreign.itself {
            self.doubt(path);
        }
        if foreign.itself && self.action == Action::Allow {
            return Ok(None);
        }
        let mut always = clause.matches.is_empty() || foreign.itself;
        let mut read = Vec::with_capacity(clause.matches.len());
        for (at, each) in clause.matches.iter().enumerate() {
            let step = format!("matches[{at}]");
            let readable = readable(each);
            let known = self.kinds(&readable).map_err(|bad| bad.at(&step))?;
            let foreign = foreign.matches.get(at).copied().unwrap_or(false)
                || matches!(readable, Cow::Owned(_));
            if foreign {
                self.doubt(&format!("{path}.{step}"));
            }
            match self.action {
                Action::Allow if foreign => {}
                Action::Deny if foreign && known.is_empty() => always = true,
                Action::Allow | Action::Deny => read.push(known),
            }
        }
        if always {
            return Ok(Some(Clause::new()));
        }
        Ok((!read.is_empty()).then_some(read))
    }

    fn doubt(&mut self, path: &str) {
        let consequence = match self.action {
            Action::Allow => "it allows nothing by it",
            Action::Deny => "it denies without asking for it",
        };
        self.doubts.push(format!(
            "{path}: a condition is not known here: {consequence}"
        ));
    }

    fn kinds(&mut self, kinds: &wire::Match) -> Result<Match, BadField> {
        Ok(Match {
            namespaces: self.strings("namespaces", &kinds.namespaces, plain)?,
            not_namespaces: self.strings("not_namespaces", &kinds.not_namespaces, plain)?,
            principals: self.strings("principals", &kinds.principals, principal)?,
            not_principals: self.strings("not_principals", &kinds.not_principals, principal)?,
            service_accounts: self.accounts("service_accounts", &kinds.service_accounts)?,
            not_service_accounts: self
                .accounts("not_service_accounts", &kinds.not_service_accounts)?,
            source_ips: ranges("source_ips", &kinds.source_ips)?,
            not_source_ips: ranges("not_source_ips", &kinds.not_source_ips)?,
            destination_ips: ranges("destination_ips", &kinds.destination_ips)?,
            not_destination_ips: ranges("not_destination_ips", &kinds.not_destination_ips)?,
            destination_ports: ports("destination_ports", &kinds.destination_ports)?,
            not_destination_ports: ports("not_destination_ports", &kinds.not_destination_ports)?,
            http: None,
        })
    }

    fn strings(
        &mut self,
        field: &str,
        values: &[wire::StringMatch],
        spelling: impl Fn(&str) -> &str,
    ) -> Result<Vec<StringMatch>, BadField> {
        use wire::string_match::MatchType;
        each(field, values, |value| {
            let mut text = |text: &str| -> Arc<str> { self.texts.get(text) };
            Ok(match &value.match_type {
                Some(MatchType::Exact(exact)) => StringMatch::Exact(text(spelling(exact))),
                Some(MatchType::Prefix(prefix)) => StringMatch::Prefix(text(spelling(prefix))),
                Some(MatchType::Suffix(suffix)) => StringMatch::Suffix(text(suffix)),
                Some(MatchType::Presence(())) => StringMatch::Presence,
                None => return Err(BadField::new("a match of no kind that is known here")),
            })
        })
    }

    fn accounts(
        &mut self,
        field: &str,
        values: &[wire::ServiceAccountMatch],
    ) -> Result<Vec<ServiceAccountMatch>, BadField> {
        each(field, values, |value| {
            if value.namespace.is_empty() || value.service_account.is_empty() {
                return Err(BadField::new(
                    "a namespace and a service account are needed",
                ));
            }
            Ok(ServiceAccountMatch {
                namespace: self.texts.get(&value.namespace),
                service_account: self.texts.get(&value.service_account),
            })
        })
    }
}

fn plain(text: &str) -> &str {
    text
}

/// Principals are compared without `spiffe://`; with it, one would silently never match.
fn principal(text: &str) -> &str {
    text.strip_prefix("spiffe://").unwrap_or(text)
}

fn ranges(field: &str, values: &[wire::Address]) -> Result<Vec<IpNet>, BadField> {
    each(field, values, |value| range(&value.address, value.length))
}

fn ports(field: &str, values: &[u32]) -> Result<Vec<u16>, BadField> {
    each(field, values, |&value| port_or_zero(value))
}

fn each<T, U>(
    field: &str,
    values: &[T],
    mut read: impl FnMut(&T) -> Result<U, BadField>,
) -> Result<Vec<U>, BadField> {
    values
        .iter()
        .enumerate()
        .map(|(at, value)| read(value).map_err(|bad| bad.at(format_args!("{field}[{at}]"))))
        .collect()
}
