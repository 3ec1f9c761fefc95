//! Finds what the decoder leaves out without a word: fields of a policy's rules that are not known
//! here. In a list of conditions a missing one changes the meaning.
//!
//! The walk follows the wire format of Protocol Buffers (`encoding`, "message structure") down to
//! the matches: `Authorization.rules` = 5, `Rule.clauses` = 1, `Clause.matches` = 2.

const RULES: u64 = 5;
const CLAUSES: u64 = 1;
const MATCHES: u64 = 2;
/// The kinds of a match. Number 13, `extensions`, is not among them: what an extension asks for
/// is not known here either.
const KINDS: std::ops::RangeInclusive<u64> = 1..=12;

/// What is not known in a rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ForeignRule {
    /// Something beside its clauses.
    pub(super) itself: bool,
    pub(super) clauses: Vec<ForeignClause>,
}

/// What is not known in a clause.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ForeignClause {
    /// Something beside its matches.
    pub(super) itself: bool,
    /// Whether each match asks for something that is not known.
    pub(super) matches: Vec<bool>,
}

/// Looks at every rule of an encoded `Authorization`, in order. `None` for bytes that are no
/// message.
pub(super) fn rules(mut policy: &[u8]) -> Option<Vec<ForeignRule>> {
    let mut rules = Vec::new();
    while !policy.is_empty() {
        if let (RULES, rule) = field(&mut policy)? {
            rules.push(self::rule(rule)?);
        }
    }
    Some(rules)
}

fn rule(mut bytes: &[u8]) -> Option<ForeignRule> {
    let mut rule = ForeignRule::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (CLAUSES, clause) => rule.clauses.push(self::clause(clause)?),
            _ => rule.itself = true,
        }
    }
    Some(rule)
}

fn clause(mut bytes: &[u8]) -> Option<ForeignClause> {
    let mut clause = ForeignClause::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (MATCHES, kinds) => clause.matches.push(has_foreign_kind(kinds)?),
            _ => clause.itself = true,
        }
    }
    Some(clause)
}

fn has_foreign_kind(mut bytes: &[u8]) -> Option<bool> {
    let mut foreign = false;
    while !bytes.is_empty() {
        foreign |= !KINDS.contains(&field(&mut bytes)?.0);
    }
    Some(foreign)
}

/// Takes one field off the front: its number, and its bytes if it has a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let (number, kind) = key(bytes)?;
    let mut depth = 0_usize;
    let mut payload = value(bytes, kind, &mut depth)?;
    // A group ends with a key of its own; nothing here has had one for many years.
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
