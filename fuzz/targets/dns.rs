//! A query of a container, and the answer of a nameserver to it: two bytes with the length of the former, then both.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, ResponseCode};

use super::cache::Cache;
use super::query::Query;
use super::route::Zones;

/// The longest that an answer may be remembered.
const LONG: Duration = Duration::from_secs(2 * 60 * 60);

pub(crate) fn run(data: &[u8]) {
    let Some((len, messages)) = data.split_first_chunk::<2>() else { return };
    let (query, answer) = messages.split_at(usize::from(u16::from_le_bytes(*len)).min(messages.len()));
    if let Some(parsed) = Query::parse(query) {
        zones().route(&parsed.name);
        assert!(parsed.udp_limit_bytes >= 512);
        for own in [parsed.refused(ResponseCode::ServFail), parsed.truncated()] {
            let own = Message::from_vec(&own).expect("our own answers are valid");
            assert_eq!(
                (own.metadata.id, own.metadata.message_type),
                (parsed.message.metadata.id, MessageType::Response)
            );
            assert_eq!(own.queries.len(), 1);
        }
    }
    zones().route(&String::from_utf8_lossy(query));
    remember(query, &Bytes::copy_from_slice(answer));
    // How the manager reads the answers to its own queries.
    let _ = Message::from_vec(answer);
}

/// What is remembered is the answer, under the asker's id, and not for ever.
fn remember(query: &[u8], answer: &Bytes) {
    let (mut cache, now) = (Cache::default(), Instant::now());
    assert_eq!(cache.get(query, now), None);
    cache.put(query, answer, now);
    if let Some(known) = cache.get(query, now) {
        assert_eq!((known.len(), &known[..2]), (answer.len(), &query[..2]));
        assert!(cache.get(query, now + Duration::from_millis(500)).is_some());
    }
    assert_eq!(cache.get(query, now + LONG), None);
}

fn zones() -> Zones {
    Zones {
        domain: "cluster.local".to_owned(),
        subnets: vec!["10.96.0.0/16".parse().expect("a subnet"), "fd00:10::/64".parse().expect("a subnet")],
        include: vec!["corp.example".to_owned()],
        exclude: vec!["lab.corp.example".to_owned()],
    }
}
