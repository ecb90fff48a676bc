//! A query as far as it is taken apart, and the answers that are our own.

use bytes::Bytes;
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::serialize::binary::BinEncodable;

/// Largest answer over UDP to a query without EDNS (RFC 1035 section 4.2.1).
const PLAIN_UDP_BYTES: usize = 512;

/// A parsed query: what is needed to route it and to answer it ourselves.
pub(crate) struct Query {
    pub(crate) message: Message,
    /// The name that is asked for, lower-case.
    pub(crate) name: String,
    /// The largest answer that the asker takes over UDP.
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

    /// An answer of our own without records.
    pub(crate) fn refused(&self, code: ResponseCode) -> Bytes {
        self.answer_with(|response| response.metadata.response_code = code)
    }

    /// An answer without records and with the TC bit: the asker comes back over TCP.
    pub(crate) fn truncated(&self) -> Bytes {
        self.answer_with(|response| response.metadata.truncation = true)
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
