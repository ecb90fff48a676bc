use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{RData, Record};

use super::*;
use crate::daemon::address::RESOLVER_SOCKET;
use crate::daemon::nat::{Rules, SubnetMap};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(text: &str, kind: RecordType) -> Bytes {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), kind));
    message.to_vec().unwrap().into()
}

/// A resolver without a tunnel. Pods are seen as 240.0.0.0/16; nothing is routed but services.
fn resolver(mappings: &[&str]) -> Resolver {
    let nat = Rc::new(RefCell::new(Nat::new(0)));
    nat.borrow_mut().set_rules(Rules {
        routed: vec!["10.96.0.0/16".parse().unwrap()],
        mapped: vec![SubnetMap { real: "10.244.0.0/16".parse().unwrap(), seen: "240.0.0.0/16".parse().unwrap() }],
        ..Rules::default()
    });
    let resolver = Resolver::new(RESOLVER_SOCKET, Tunnel::new(), nat, Vec::new());
    let mappings = mappings.iter().map(|text| text.parse::<crate::config::network::DnsMapping>().unwrap());
    resolver.set_zones(Zones {
        domain: "cluster.local".into(),
        subnets: vec!["10.96.0.0/16".parse().unwrap()],
        ..Zones::default()
    });
    resolver.set_mappings(mappings.map(|mapping| (mapping.name.to_string(), mapping.target)).collect());
    resolver
}

/// Has the resolver remember that the cluster's DNS said this.
fn said(resolver: &Resolver, text: &str, kind: RecordType, records: impl IntoIterator<Item = RData>) {
    let asked = query(text, kind);
    let mut answer = Message::from_vec(&asked).unwrap().into_response();
    answer.add_answers(records.into_iter().map(|data| Record::from_rdata(name(text), 300, data)));
    resolver.cache.borrow_mut().put(&asked, &answer.to_vec().unwrap().into(), Instant::now());
}

async fn answers(resolver: &Resolver, text: &str, kind: RecordType) -> Message {
    Message::from_vec(&resolver.answer_stream(query(text, kind)).await.unwrap()).unwrap()
}

/// The answers as text: name, TTL, data.
fn lines(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| format!("{} {} {}", record.name, record.ttl, record.data)).collect()
}

#[tokio::test]
async fn addresses_that_no_route_leads_to_are_answered_as_virtual_ones() {
    let resolver = resolver(&[]);
    let web = "web.default.svc.cluster.local.";
    let records = [A::new(10, 96, 0, 1), A::new(203, 0, 113, 1), A::new(10, 244, 0, 7)].map(RData::A);
    said(&resolver, web, RecordType::A, records);
    let expected = [format!("{web} 300 10.96.0.1"), format!("{web} 60 198.18.0.3"), format!("{web} 300 240.0.0.7")];
    for _ in 0..2 {
        assert_eq!(
            lines(&answers(&resolver, web, RecordType::A).await),
            expected,
            "what is remembered is not rewritten"
        );
    }
    assert_eq!(resolver.nat.borrow().borrowed(), 1);
}

#[tokio::test]
async fn reverse_names_of_virtual_addresses_are_those_of_the_real_ones() {
    let resolver = resolver(&[]);
    said(&resolver, "out.cluster.local.", RecordType::A, [RData::A(A::new(203, 0, 113, 1))]);
    answers(&resolver, "out.cluster.local.", RecordType::A).await;
    for (real, seen, target) in [
        ("1.113.0.203.in-addr.arpa.", "3.0.18.198.in-addr.arpa.", "db.example."),
        ("7.0.244.10.in-addr.arpa.", "7.0.0.240.in-addr.arpa.", "db-0.db.default.svc.cluster.local."),
    ] {
        said(&resolver, real, RecordType::PTR, [RData::PTR(PTR(name(target)))]);
        let answer = answers(&resolver, seen, RecordType::PTR).await;
        assert_eq!(answer.queries[0].name().to_ascii(), seen);
        assert_eq!(lines(&answer), [format!("{seen} 300 {target}")]);
    }
    let none = answers(&resolver, "9.0.18.198.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain, "it stands for nothing");
}

#[tokio::test]
async fn mapped_name_is_an_alias_of_its_target() {
    let resolver = resolver(&["db.corp.example=web.default.svc.cluster.local", "Loop.example=db.corp.example"]);
    let web = "web.default.svc.cluster.local.";
    said(&resolver, web, RecordType::A, [RData::A(A::new(203, 0, 113, 1))]);
    let answer = answers(&resolver, "DB.corp.example.", RecordType::A).await;
    assert_eq!((answer.metadata.id, answer.metadata.recursion_desired), (9, true));
    assert_eq!(lines(&answer), [format!("DB.corp.example. 30 {web}"), format!("{web} 60 198.18.0.3")]);
    let alias = answers(&resolver, "db.corp.example.", RecordType::CNAME).await;
    assert_eq!(lines(&alias), [format!("db.corp.example. 30 {web}")]);
    // Nobody answers for the target of a target.
    let twice = answers(&resolver, "loop.example.", RecordType::A).await;
    assert_eq!(twice.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn name_mapped_to_an_address_has_that_and_no_other_records() {
    let resolver = resolver(&["db=192.0.2.7", "pod=10.244.0.7", "six=fd00::7"]);
    for (asked, kind, expected) in [
        ("db.", RecordType::A, vec!["db. 30 192.0.2.7"]),
        ("db.", RecordType::AAAA, vec![]),
        ("db.", RecordType::MX, vec![]),
        ("pod.", RecordType::A, vec!["pod. 30 240.0.0.7"]),
        ("six.", RecordType::AAAA, vec!["six. 30 fd00::7"]),
    ] {
        let answer = answers(&resolver, asked, kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(lines(&answer), expected, "{asked} {kind}");
    }
}
