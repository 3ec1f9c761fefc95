//! Finds unknown fields in the rules of a policy. The protobuf decoder skips them silently, but a rule
//! without one of its conditions has a different meaning.
//!
//! The scan follows the wire format of Protocol Buffers (`encoding`, "message structure") down to
//! the matches: `Authorization.rules` = 5, `Rule.clauses` = 1, `Clause.matches` = 2.

const RULES: u64 = 5;
const CLAUSES: u64 = 1;
const MATCHES: u64 = 2;
/// The known fields of a match. Number 13, `extensions`, counts as unknown: the conditions of an
/// extension are unknown, too.
const MATCH_FIELDS: std::ops::RangeInclusive<u64> = 1..=12;

/// The unknown fields of a rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RuleFields {
    /// Whether the rule has fields other than clauses.
    pub(super) has_unknown: bool,
    pub(super) clauses: Vec<ClauseFields>,
}

/// The unknown fields of a clause.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClauseFields {
    /// Whether the clause has fields other than matches.
    pub(super) has_unknown: bool,
    /// For each match: whether it has unknown fields.
    pub(super) unknown_in_matches: Vec<bool>,
}

/// Scans every rule of an encoded `Authorization`, in order. `None` if the bytes are not a message.
pub(super) fn scan_rules(mut policy: &[u8]) -> Option<Vec<RuleFields>> {
    let mut rules = Vec::new();
    while !policy.is_empty() {
        if let (RULES, rule) = field(&mut policy)? {
            rules.push(scan_rule(rule)?);
        }
    }
    Some(rules)
}

fn scan_rule(mut bytes: &[u8]) -> Option<RuleFields> {
    let mut rule = RuleFields::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (CLAUSES, clause) => rule.clauses.push(scan_clause(clause)?),
            _ => rule.has_unknown = true,
        }
    }
    Some(rule)
}

fn scan_clause(mut bytes: &[u8]) -> Option<ClauseFields> {
    let mut clause = ClauseFields::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (MATCHES, fields) => clause.unknown_in_matches.push(has_unknown_field(fields)?),
            _ => clause.has_unknown = true,
        }
    }
    Some(clause)
}

fn has_unknown_field(mut bytes: &[u8]) -> Option<bool> {
    let mut unknown = false;
    while !bytes.is_empty() {
        unknown |= !MATCH_FIELDS.contains(&field(&mut bytes)?.0);
    }
    Some(unknown)
}

/// Takes the first field: its number, and its bytes if it has a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let (number, kind) = key(bytes)?;
    let mut depth = 0_usize;
    let mut payload = value(bytes, kind, &mut depth)?;
    // A group (deprecated) ends with a key of its own; its content is skipped.
    while depth > 0 {
        payload = &[];
        let (_, kind) = key(bytes)?;
        value(bytes, kind, &mut depth)?;
    }
    Some((number, payload))
}

fn key(bytes: &mut &[u8]) -> Option<(u64, u64)> {
    let key = varint(bytes)?;
    Some((key >> 3, key & 7))
}

fn value<'a>(bytes: &mut &'a [u8], kind: u64, depth: &mut usize) -> Option<&'a [u8]> {
    let length = match kind {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        3 => {
            *depth = depth.checked_add(1)?;
            0
        }
        4 => {
            *depth = depth.checked_sub(1)?;
            0
        }
        5 => 4,
        _ => return None,
    };
    let (payload, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(payload)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for at in 0..10_u32 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f).wrapping_shl(at * 7);
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
