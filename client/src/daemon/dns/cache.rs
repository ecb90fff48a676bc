//! Answers of the cluster's DNS, for as long as they say. A pure core: the caller tells the time.
//!
//! Answers are kept as they came; a hit gets the asker's id and spelling of the name, and TTLs that have run down (RFC 1035
//! section 3.2.1, RFC 2181 section 8). Answers without data are kept for the time that their SOA record says (RFC 2308
//! section 5). Failures and cut answers are not kept.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::wire::{self, HEADER_BYTES, name_end};

/// Answers kept at most.
const MAX_ENTRIES: usize = 2048;

/// Longest answer that is kept: 2 MiB for all at most.
const MAX_ANSWER_BYTES: usize = 1024;

/// Longest time an answer is kept. CoreDNS says 30 s for the names of a cluster.
const MAX_TTL: Duration = Duration::from_secs(60 * 60);

/// Longest time that a name is said not to exist: it may be about to be made.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Codes of answers that are kept (RFC 1035 section 4.1.1).
const NO_ERROR: u8 = 0;
const NX_DOMAIN: u8 = 3;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// By query without its id, its name in lower case: flags and EDNS options are part of the question.
    answers: HashMap<Box<[u8]>, Entry>,
}

#[derive(Debug)]
struct Entry {
    answer: Bytes,
    /// Where its TTLs are.
    ttl_offsets: Vec<u16>,
    came_at: Instant,
    ends_at: Instant,
}

impl Cache {
    /// The answer to `query`, if it is known at `now`.
    pub(crate) fn get(&self, query: &[u8], now: Instant) -> Option<Bytes> {
        let question_end = name_end(query, HEADER_BYTES)?;
        let entry = self.answers.get(&key(query)?).filter(|entry| now < entry.ends_at)?;
        let mut answer = BytesMut::from(&entry.answer[..]);
        answer[..2].copy_from_slice(&query[..2]);
        // The key has the same name in lower case, so it is as long.
        answer.get_mut(HEADER_BYTES..question_end)?.copy_from_slice(&query[HEADER_BYTES..question_end]);
        let age = u32::try_from(now.saturating_duration_since(entry.came_at).as_secs()).unwrap_or(u32::MAX);
        for &offset in &entry.ttl_offsets {
            let ttl = answer.get_mut(usize::from(offset)..)?.first_chunk_mut::<4>()?;
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
        }
        Some(answer.freeze())
    }

    /// Keeps the answer to `query`, if it may be.
    pub(crate) fn put(&mut self, query: &[u8], answer: &Bytes, now: Instant) {
        let (Some(key), Some(read)) = (key(query), Read::answer(answer)) else { return };
        let is_same_question = name_end(query, HEADER_BYTES).is_some_and(|end| {
            answer.get(HEADER_BYTES..end).is_some_and(|name| name.eq_ignore_ascii_case(&query[HEADER_BYTES..end]))
        });
        if read.ttl.is_zero() || !is_same_question {
            return;
        }
        if self.answers.len() >= MAX_ENTRIES {
            self.answers.retain(|_, entry| now < entry.ends_at);
        }
        if self.answers.len() >= MAX_ENTRIES {
            let soonest = self.answers.iter().min_by_key(|(_, entry)| entry.ends_at).map(|(key, _)| key.clone());
            soonest.and_then(|key| self.answers.remove(&key));
        }
        // A copy: the answer may be a slice of something larger.
        let answer = Bytes::copy_from_slice(answer);
        let entry = Entry { answer, ttl_offsets: read.ttl_offsets, came_at: now, ends_at: now + read.ttl };
        self.answers.insert(key, entry);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
    }
}

/// What an answer says about keeping it.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    ttl: Duration,
    ttl_offsets: Vec<u16>,
}

impl Read {
    /// `None` for what is not kept, or not a message.
    fn answer(answer: &[u8]) -> Option<Self> {
        let header = answer.first_chunk::<HEADER_BYTES>().filter(|_| answer.len() <= MAX_ANSWER_BYTES)?;
        let (is_cut, code) = (header[2] & 0x02 != 0, header[3] & 0x0f);
        if is_cut || ![NO_ERROR, NX_DOMAIN].contains(&code) {
            return None;
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (questions, answers) = (count(4), count(6));
        if questions != 1 {
            return None;
        }
        let mut ttl_offsets = Vec::new();
        let (mut least, mut negative) = (MAX_TTL, None);
        for record in wire::records(answer)? {
            // What looks like the TTL of an OPT record is none.
            if record.kind == wire::OPT {
                continue;
            }
            ttl_offsets.push(u16::try_from(record.ttl_at).ok()?);
            let ttl = record.ttl(answer);
            if record.is_answer {
                least = least.min(Duration::from_secs(ttl.into()));
            } else if record.kind == wire::SOA {
                // The last field of the record (RFC 1035 section 3.3.13) counts, and so does the record's own TTL.
                let minimum = answer[record.data].last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))?;
                negative = Some(Duration::from_secs(ttl.min(minimum).into()).min(MAX_NEGATIVE_TTL));
            }
        }
        let has_data = answers > 0 && code == NO_ERROR;
        Some(Self { ttl: if has_data { least } else { negative? }, ttl_offsets })
    }
}

/// The query without its id, with its name in lower case.
fn key(query: &[u8]) -> Option<Box<[u8]>> {
    let end = name_end(query, HEADER_BYTES)?;
    let mut key: Box<[u8]> = query.get(2..)?.into();
    key.get_mut(HEADER_BYTES - 2..end - 2)?.make_ascii_lowercase();
    Some(key)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA as Soa};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn query(id: u16, text: &str) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name(text), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(text: &str, change: impl FnOnce(&mut Message)) -> Bytes {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(text), RecordType::A));
        change(&mut message);
        message.to_vec().unwrap().into()
    }

    fn record(text: &str, ttl: u32) -> Record {
        Record::from_rdata(name(text), ttl, RData::A(A::new(10, 0, 0, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let soa = Soa::new(name("ns.cluster.local."), name("admin.cluster.local."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("cluster.local."), ttl, RData::SOA(soa))
    }

    #[test]
    fn hit_has_the_askers_id_and_spelling_and_what_is_left_of_the_ttl() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let kept = answer("web.default.", |m| {
            m.add_answer(record("web.default.", 30));
            m.add_answer(record("web.default.", 20));
            m.edns = Some(Edns::new());
        });
        cache.put(&query(1, "web.default."), &kept, now);
        let asked = query(7, "WEB.default.");
        let hit = Message::from_vec(&cache.get(&asked, now + Duration::from_secs(19)).unwrap()).unwrap();
        assert_eq!(hit.metadata.id, 7);
        assert_eq!(hit.queries[0].name().to_ascii(), "WEB.default.");
        assert_eq!(hit.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [11, 1]);
        assert!(hit.edns.is_some(), "what looks like the TTL of an OPT record is left alone");
        assert_eq!(cache.get(&asked, now + Duration::from_secs(20)), None, "the least TTL counts");
        assert_eq!(cache.get(&query(7, "web.shop."), now), None);
    }

    #[test]
    fn absence_is_kept_as_long_as_the_soa_says() {
        for (change, seconds) in [
            (&(|m: &mut Message| _ = m.add_authority(soa(25, 10))) as &dyn Fn(&mut Message), Some(10)),
            (&|m| _ = m.add_authority(soa(5, 10)), Some(5)),
            (&|m| _ = m.add_authority(soa(900, 900)), Some(30)),
            (&|_| {}, None),
        ] {
            for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
                let absent = answer("no.default.", |m| {
                    m.metadata.response_code = code;
                    change(m);
                });
                let read = Read::answer(&absent);
                assert_eq!(read.map(|read| read.ttl), seconds.map(Duration::from_secs), "{code}");
            }
        }
    }

    #[test]
    fn failures_cut_answers_and_those_of_no_duration_are_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for change in [
            &(|m: &mut Message| m.metadata.response_code = ResponseCode::ServFail) as &dyn Fn(&mut Message),
            &|m| m.metadata.truncation = true,
            &|m| {
                m.answers.clear();
                m.add_answer(record("web.", 0));
            },
        ] {
            let refused = answer("web.", |m| {
                m.add_answer(record("web.", 30));
                change(m);
            });
            cache.put(&query(1, "web."), &refused, now);
            assert_eq!(cache.get(&query(1, "web."), now), None);
        }
        let other = answer("shop.", |m| _ = m.add_answer(record("shop.", 30)));
        cache.put(&query(1, "web."), &other, now);
        assert_eq!(cache.get(&query(1, "web."), now), None, "an answer to another question");
    }

    #[test]
    fn full_cache_forgets_what_ends_first() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..=MAX_ENTRIES {
            let text = format!("n{number}.");
            let ttl = if number == 5 { 10 } else { 30 };
            cache.put(&query(1, &text), &answer(&text, |m| _ = m.add_answer(record(&text, ttl))), now);
        }
        assert_eq!(cache.answers.len(), MAX_ENTRIES);
        assert_eq!(cache.get(&query(1, "n5."), now), None);
        assert!(cache.get(&query(1, "n6."), now).is_some());
    }

    proptest! {
        #[test]
        fn random_messages_never_panic(asked: Vec<u8>, answered: Vec<u8>) {
            let (mut cache, now) = (Cache::default(), Instant::now());
            cache.put(&asked, &Bytes::from(answered), now);
            cache.get(&asked, now);
        }
    }
}
