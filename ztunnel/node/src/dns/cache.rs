//! The cache of resolvers' answers; each answer is kept for its TTL.
//!
//! Answers are kept per pod, because resolvers may answer each pod differently. The cache is
//! bounded in entries and in bytes; when it is full, the oldest entry is evicted.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::query::{Query, QueryFlags};
use super::wire::{self, Ttls};

/// The maximum number of answers.
const MAX_ENTRIES: usize = 4096;
/// The maximum size of all answers in bytes.
const MAX_BYTES: usize = 4 << 20;
/// The maximum time that an answer is kept, whatever its TTL.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// The cache key: queries with equal keys have the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cookie of the pod's network namespace.
    pod: u64,
    resolver: SocketAddr,
    /// In lower case.
    question: Vec<u8>,
    flags: QueryFlags,
}

impl Key {
    /// The key of a query that a pod sent to a resolver; `pod` is the cookie of its network
    /// namespace. `None` if the answer must not be cached.
    #[must_use]
    pub fn of(pod: u64, resolver: SocketAddr, query: &Query) -> Option<Self> {
        Some(Self {
            pod,
            resolver,
            question: wire::lowercase_question(query.question_bytes()),
            flags: query.flags()?,
        })
    }
}

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    ttls: Ttls,
    inserted: Instant,
    number: u64,
}

impl Entry {
    /// The age in seconds; `None` if the entry has expired.
    fn age(&self, now: Instant) -> Option<u32> {
        let age = now.saturating_duration_since(self.inserted).as_secs();
        let age = u32::try_from(age).ok()?;
        (age < self.ttls.min && u64::from(age) < MAX_AGE.as_secs()).then_some(age)
    }
}

/// The cached answers of one worker.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry, foldhash::quality::RandomState>,
    /// In order of insertion; a replaced entry stays in the list with its old number.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    last_number: u64,
}

impl Cache {
    /// The cached answer to a query, with the query's id and the letter case of its name, if there
    /// is one of at most `max_length` bytes.
    #[must_use]
    pub fn get(
        &self,
        key: &Key,
        query: &Query,
        max_length: usize,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let entry = self.entries.get(key)?;
        let age = entry
            .age(now)
            .filter(|_| entry.answer.len() <= max_length)?;
        let mut answer = entry.answer.clone();
        entry.ttls.subtract(&mut answer, age);
        wire::set_id(&mut answer, query.id());
        wire::set_question(&mut answer, query.question_bytes());
        Some(answer)
    }

    /// Caches an answer if it may be cached: it must be complete and answer the key's question, and
    /// its code must be success or "no such name".
    pub fn put(&mut self, key: Key, answer: &[u8], now: Instant) {
        let Some(header) = wire::header(answer) else {
            return;
        };
        let is_cacheable = !header.truncation
            && matches!(
                header.response_code,
                ResponseCode::NoError | ResponseCode::NXDomain
            );
        let has_same_question = wire::question(answer)
            .is_some_and(|question| wire::same_question(question, &key.question));
        if !is_cacheable || !has_same_question {
            return;
        }
        let Some(ttls) = Ttls::of(answer) else {
            return;
        };
        if ttls.min == 0 || answer.len() > MAX_BYTES / 16 {
            return;
        }
        self.remove(&key);
        self.last_number += 1;
        self.bytes += answer.len();
        let entry = Entry {
            answer: answer.to_vec(),
            ttls,
            inserted: now,
            number: self.last_number,
        };
        self.order.push_back((key.clone(), self.last_number));
        self.entries.insert(key, entry);
        self.evict();
    }

    /// Removes the answers of a pod that has been removed.
    pub(super) fn remove_pod(&mut self, pod: u64) {
        let bytes = &mut self.bytes;
        self.entries.retain(|key, entry| {
            let is_kept = key.pod != pod;
            if !is_kept {
                *bytes -= entry.answer.len();
            }
            is_kept
        });
        self.order.retain(|(key, _)| key.pod != pod);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.answer.len();
        }
    }

    /// Evicts the oldest entries until the limits hold.
    fn evict(&mut self) {
        let is_full = |cache: &Self| cache.entries.len() > MAX_ENTRIES || cache.bytes > MAX_BYTES;
        // The list needs a limit of its own, because replacements add to it without adding entries.
        while is_full(self) || self.order.len() > 2 * MAX_ENTRIES {
            let Some((key, number)) = self.order.pop_front() else {
                return;
            };
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| entry.number == number)
            {
                self.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
