//! The cache of resolvers' answers; each answer is kept for its TTL.
//!
//! Answers are kept per pod, because resolvers may answer each pod differently. The cache is
//! bounded in entries and in bytes; when it is full, the oldest entry is evicted.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::query::{Flavour, Query};
use super::wire::{self, Header, Lifetimes};

/// The maximum number of answers.
const MOST_ENTRIES: usize = 4096;
/// The maximum size of all answers in bytes.
const MOST_BYTES: usize = 4 << 20;
/// The maximum time that an answer is kept, whatever its TTL.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// The response codes that may be cached: success and "no such name".
const ANSWERS: [u16; 2] = [0, 3];

/// The cache key: queries with equal keys have the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cookie of the pod's network namespace.
    pod: u64,
    resolver: SocketAddr,
    /// In lower case.
    question: Vec<u8>,
    flavour: Flavour,
}

impl Key {
    /// The key of a query that a pod sent to a resolver; `pod` is the cookie of its network
    /// namespace. `None` if the answer must not be cached.
    #[must_use]
    pub fn of(pod: u64, resolver: SocketAddr, query: &Query) -> Option<Self> {
        Some(Self {
            pod,
            resolver,
            question: wire::in_small_letters(query.raw()),
            flavour: query.flavour()?,
        })
    }
}

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    lifetimes: Lifetimes,
    since: Instant,
    number: u64,
}

impl Entry {
    fn age(&self, now: Instant) -> Option<u32> {
        let age = now.saturating_duration_since(self.since).as_secs();
        let age = u32::try_from(age).ok()?;
        (age < self.lifetimes.least && u64::from(age) < LONGEST.as_secs()).then_some(age)
    }
}

/// The cached answers of one worker.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry, foldhash::quality::RandomState>,
    /// In order of insertion; a replaced entry stays in the list with its old number.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    numbers: u64,
}

impl Cache {
    /// The cached answer to a query, with the query's id and the letter case of its name, if there
    /// is one of at most `most` bytes.
    #[must_use]
    pub fn get(&self, key: &Key, query: &Query, most: usize, now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(key)?;
        let age = entry.age(now).filter(|_| entry.answer.len() <= most)?;
        let mut answer = entry.answer.clone();
        entry.lifetimes.count_down(&mut answer, age);
        wire::set_id(&mut answer, query.id());
        wire::set_question(&mut answer, query.raw());
        Some(answer)
    }

    /// Caches an answer if it may be cached.
    pub fn put(&mut self, key: Key, answer: &[u8], now: Instant) {
        let Some(header) = Header::of(answer) else {
            return;
        };
        let complete = ANSWERS.contains(&header.code()) && !header.is_truncated();
        let asked = wire::question(answer)
            .is_some_and(|question| wire::same_question(question, &key.question));
        let Some(lifetimes) = Lifetimes::of(answer).filter(|_| complete && asked) else {
            return;
        };
        if lifetimes.least == 0 || answer.len() > MOST_BYTES / 16 {
            return;
        }
        self.remove(&key);
        self.numbers += 1;
        self.bytes += answer.len();
        let entry = Entry {
            answer: answer.to_vec(),
            lifetimes,
            since: now,
            number: self.numbers,
        };
        self.order.push_back((key.clone(), self.numbers));
        self.entries.insert(key, entry);
        self.shrink();
    }

    /// Removes the answers of a pod that has left.
    pub(super) fn forget(&mut self, pod: u64) {
        let bytes = &mut self.bytes;
        self.entries.retain(|key, entry| {
            let stays = key.pod != pod;
            if !stays {
                *bytes -= entry.answer.len();
            }
            stays
        });
        self.order.retain(|(key, _)| key.pod != pod);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.answer.len();
        }
    }

    /// Evicts the oldest entries until the limits hold.
    fn shrink(&mut self) {
        let full = |cache: &Self| cache.entries.len() > MOST_ENTRIES || cache.bytes > MOST_BYTES;
        // The list needs a limit of its own, because replacements add to it without adding entries.
        while full(self) || self.order.len() > 2 * MOST_ENTRIES {
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
