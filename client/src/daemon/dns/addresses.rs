//! Rewrites the addresses of an answer, in place: A and AAAA records of all its sections.
//!
//! The rest of the answer stays byte for byte. Addresses elsewhere (the hints of SVCB and HTTPS records, text) are not
//! looked at, and a signature over a record that is rewritten does not fit any more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};

use super::wire::{self, RecordAt};
use crate::daemon::nat::{MAX_VIRTUAL_TTL, SeenAs};

/// The answer with each address as `seen_as` says; a record with a borrowed one is not kept for longer than that may be.
/// `None` when one is seen as nothing. What is not a message stays as it is.
pub(super) fn rewrite(answer: Bytes, mut seen_as: impl FnMut(IpAddr) -> SeenAs) -> Option<Bytes> {
    let mut rewritten: Option<BytesMut> = None;
    for record in wire::records(&answer).unwrap_or_default() {
        let Some(real) = address(&record, &answer) else { continue };
        let (seen, is_borrowed) = match seen_as(real) {
            SeenAs::Itself => continue,
            SeenAs::Fixed(seen) => (seen, false),
            SeenAs::Borrowed(seen) => (seen, true),
            SeenAs::Nothing => return None,
        };
        let rewritten = rewritten.get_or_insert_with(|| BytesMut::from(&answer[..]));
        match seen {
            IpAddr::V4(seen) => rewritten[record.data.clone()].copy_from_slice(&seen.octets()),
            IpAddr::V6(seen) => rewritten[record.data.clone()].copy_from_slice(&seen.octets()),
        }
        if is_borrowed {
            let most = u32::try_from(MAX_VIRTUAL_TTL.as_secs()).expect("a constant");
            record.set_ttl(rewritten, record.ttl(&answer).min(most));
        }
    }
    Some(rewritten.map_or(answer, BytesMut::freeze))
}

/// The address that a record says, if it says one.
fn address(record: &RecordAt, message: &[u8]) -> Option<IpAddr> {
    let data = &message[record.data.clone()];
    match record.kind {
        wire::A => <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).into()),
        wire::AAAA => <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode};
    use hickory_proto::rr::rdata::{CNAME, TXT};
    use hickory_proto::rr::{Name, RData, Record};
    use proptest::prelude::*;

    use super::*;

    fn record(name: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_rewritten_in_place_and_nothing_else() {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_answer(record("a.", 300, RData::CNAME(CNAME(Name::from_ascii("b.").unwrap()))));
        message.add_answer(record("b.", 300, RData::A("10.244.0.1".parse().unwrap())));
        message.add_answer(record("b.", 300, RData::A("203.0.113.1".parse().unwrap())));
        message.add_answer(record("b.", 20, RData::AAAA("2001:db8::1".parse().unwrap())));
        message.add_answer(record("b.", 300, RData::TXT(TXT::new(vec!["203.0.113.1".to_owned()]))));
        message.add_additional(record("c.", 300, RData::A("10.96.0.1".parse().unwrap())));
        message.edns = Some(Edns::new());
        let seen_as = |real: IpAddr| match real.to_string().as_str() {
            "10.244.0.1" => SeenAs::Fixed(ip("240.0.0.1")),
            "203.0.113.1" => SeenAs::Borrowed(ip("198.18.0.3")),
            "2001:db8::1" => SeenAs::Borrowed(ip("fd74:7074::4")),
            _ => SeenAs::Itself,
        };
        let rewritten = rewrite(message.to_vec().unwrap().into(), seen_as).unwrap();
        message.answers[1] = record("b.", 300, RData::A("240.0.0.1".parse().unwrap()));
        message.answers[2] = record("b.", 60, RData::A("198.18.0.3".parse().unwrap()));
        message.answers[3] = record("b.", 20, RData::AAAA("fd74:7074::4".parse().unwrap()));
        assert_eq!(rewritten, message.to_vec().unwrap());
    }

    #[test]
    fn answer_with_an_address_that_is_seen_as_nothing_is_none() {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_answer(record("b.", 300, RData::A("203.0.113.1".parse().unwrap())));
        assert_eq!(rewrite(message.to_vec().unwrap().into(), |_| SeenAs::Nothing), None);
    }

    proptest! {
        #[test]
        fn random_messages_never_panic_and_keep_their_length(message: Vec<u8>) {
            let seen_as = |real: IpAddr| match real {
                IpAddr::V4(_) => SeenAs::Borrowed(ip("198.18.0.3")),
                IpAddr::V6(_) => SeenAs::Fixed(ip("fd74:7074::3")),
            };
            let rewritten = rewrite(message.clone().into(), seen_as).unwrap();
            prop_assert_eq!(rewritten.len(), message.len());
        }
    }
}
