//! A query of a container, and the answers that are made here.

use std::net::IpAddr;

use bytes::Bytes;
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

/// Largest answer over UDP to a query without EDNS (RFC 1035 section 4.2.1).
const PLAIN_UDP_BYTES: usize = 512;

/// How long what a name is mapped to may be remembered, in seconds: as CoreDNS says for the names of a cluster.
const MAPPING_TTL: u32 = 30;

/// A parsed query: what is needed to route it and to answer it ourselves.
pub(crate) struct Query {
    /// Invariant: it has one question.
    pub(crate) message: Message,
    /// The name that is asked for, lower-case, with its final dot.
    pub(crate) name: String,
    /// Longest answer that the asker takes in a datagram.
    pub(crate) udp_limit_bytes: usize,
}

impl Query {
    /// `None` for what is not a query with one question: such datagrams are dropped.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        let message = Message::from_vec(raw).ok()?;
        let [question] = message.queries.as_slice() else {
            return None;
        };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let name = question.name().to_lowercase().to_ascii();
        let udp_limit_bytes =
            message.edns.as_ref().map_or(PLAIN_UDP_BYTES, |edns| usize::from(edns.max_payload()).max(PLAIN_UDP_BYTES));
        Some(Self { message, name, udp_limit_bytes })
    }

    /// The same query for another name, and its bytes.
    pub(crate) fn renamed(&self, name: Name) -> Option<(Self, Bytes)> {
        let mut message = self.message.clone();
        message.queries[0].set_name(name);
        let raw = Bytes::from(message.to_vec().ok()?);
        Some((Self::parse(&raw)?, raw))
    }

    /// An answer of our own without records.
    pub(crate) fn refused(&self, code: ResponseCode) -> Bytes {
        self.answer_with(|response| response.metadata.response_code = code)
    }

    /// An answer without records and with the TC bit: the asker comes back over TCP.
    pub(crate) fn truncated(&self) -> Bytes {
        self.answer_with(|response| response.metadata.truncation = true)
    }

    /// The answer for a name that stands for an address.
    pub(crate) fn address(&self, ip: IpAddr) -> Bytes {
        let (kind, data) = match ip {
            IpAddr::V4(ip) => (RecordType::A, RData::A(ip.into())),
            IpAddr::V6(ip) => (RecordType::AAAA, RData::AAAA(ip.into())),
        };
        let record = Record::from_rdata(self.asked().clone(), MAPPING_TTL, data);
        let is_asked_for = [kind, RecordType::ANY].contains(&self.kind());
        self.answer_with(|response| _ = response.add_answers(is_asked_for.then_some(record)))
    }

    /// The answer for a name that stands for `target`, given the answer for that. An asker for the CNAME record itself gets no
    /// more than that (RFC 1034 section 3.6.2).
    pub(crate) fn alias(&self, target: Name, answer: Option<&[u8]>) -> Bytes {
        let alias = Record::from_rdata(self.asked().clone(), MAPPING_TTL, RData::CNAME(CNAME(target)));
        let Some(answer) = answer else {
            return self.answer_with(|response| _ = response.add_answer(alias));
        };
        let Ok(answer) = Message::from_vec(answer) else { return self.refused(ResponseCode::ServFail) };
        self.answer_with(|response| {
            response.metadata.response_code = answer.metadata.response_code;
            response.add_answer(alias);
            response.add_answers(answer.answers);
            response.add_authorities(answer.authorities);
        })
    }

    /// The answer to `other`, as one to this query: what it says of the other's name it says of this one's.
    pub(crate) fn taken_over(&self, other: &Self, answer: &[u8]) -> Option<Bytes> {
        let mut message = Message::from_vec(answer).ok()?;
        message.queries.clone_from(&self.message.queries);
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            if record.name == *other.asked() {
                record.name.clone_from(self.asked());
            }
        }
        message.to_vec().ok().map(Bytes::from)
    }

    /// The type of records that is asked for.
    pub(crate) fn kind(&self) -> RecordType {
        self.message.queries[0].query_type()
    }

    /// The name that is asked for, as the asker writes it.
    fn asked(&self) -> &Name {
        self.message.queries[0].name()
    }

    fn answer_with(&self, change: impl FnOnce(&mut Message)) -> Bytes {
        let mut response = Message::response(self.message.metadata.id, self.message.metadata.op_code);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(self.message.queries.iter().cloned());
        // Our own payload size, and none of the asker's options (RFC 6891 section 6.1.1).
        response.edns = self.message.edns.as_ref().map(|_| Edns::new());
        change(&mut response);
        response.to_bytes().map(Bytes::from).unwrap_or_default()
    }
}
