//! Where the records of a DNS message lie in its bytes (RFC 1035 section 4.1).

use std::ops::Range;

/// Header of a DNS message (RFC 1035 section 4.1.1).
pub(super) const HEADER_BYTES: usize = 12;

/// Types of records (RFC 1035 section 3.2.2, RFC 3596 section 2.1, RFC 6891 section 6.1.1).
pub(super) const A: u16 = 1;
pub(super) const SOA: u16 = 6;
pub(super) const AAAA: u16 = 28;
pub(super) const OPT: u16 = 41;

/// A record of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordAt {
    /// Whether it is of the answer section.
    pub(super) is_answer: bool,
    /// Its type.
    pub(super) kind: u16,
    /// Where the four bytes of its TTL begin.
    pub(super) ttl_at: usize,
    /// Where its data is: within the message.
    pub(super) data: Range<usize>,
}

impl RecordAt {
    /// Its TTL in `message`, of which it is.
    pub(super) fn ttl(&self, message: &[u8]) -> u32 {
        let bytes = message[self.ttl_at..].first_chunk::<4>().expect("the record was read");
        u32::from_be_bytes(*bytes)
    }

    /// Writes its TTL in `message`, of which it is.
    pub(super) fn set_ttl(&self, message: &mut [u8], ttl: u32) {
        message[self.ttl_at..self.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
    }
}

/// The records of all sections, in order; `None` for what is not a message.
pub(super) fn records(message: &[u8]) -> Option<Vec<RecordAt>> {
    let header = message.first_chunk::<HEADER_BYTES>()?;
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (questions, answers, authorities, additionals) = (count(4), count(6), count(8), count(10));
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        at = name_end(message, at)? + 4;
    }
    let mut records = Vec::new();
    for number in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
        let fields = name_end(message, at)?;
        let fixed = message.get(fields..)?.first_chunk::<10>()?;
        let data = fields + 10;
        at = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        message.get(data..at)?;
        records.push(RecordAt {
            is_answer: number < u32::from(answers),
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            ttl_at: fields + 4,
            data: data..at,
        });
    }
    Some(records)
}

/// Where the name that begins at `at` ends (RFC 1035 sections 3.1 and 4.1.4).
pub(super) fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            len @ 1..=63 => at += 1 + usize::from(len),
            192.. => return (at + 2 <= message.len()).then_some(at + 2),
            64..=191 => return None,
        }
    }
}
