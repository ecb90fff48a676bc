use tp_protocol::engage::call::{AgentState, Environment, HeldPort, Orders};
use tp_protocol::engage::reach::Arrival;
use tp_protocol::engage::wire::{self, FilterMessage, HeaderRuleMessage, header_rule};
use tp_protocol::hello::ClientHello;

use super::*;
use crate::session::SessionLimits;
use crate::session::hub::{Admitted, FlowLimits, Ticket};

mod dial;

fn registry() -> Registry {
    let limits = SessionLimits { sessions: 8, lanes_per_session: 2, grace: Duration::from_secs(120) };
    Registry::new(Hub::new(limits, FlowLimits { flows: 8, pending_dials: 2 }))
}

/// A client that is here for as long as its ticket.
fn client(registry: &Registry) -> Ticket {
    match registry.hub().admit(&ClientHello::new("0.1.0", "demo")).unwrap() {
        Admitted::New(ticket) => ticket,
        Admitted::Resumed { .. } => panic!("a new client has nothing to resume"),
    }
}

fn stand_in() -> StandIn {
    StandIn::of("tp-system", &held("deployment/web", "web"))
}

/// An engagement in `shop`, of the whole workload.
fn held(workload: &str, service: &str) -> Held {
    Held { namespace: "shop".into(), workload: workload.into(), service: service.into(), ..Held::default() }
}

/// An intercept of port 8080, of the requests whose header `x-user` is `user`, or of all.
fn record(id: &str, key: &SessionKey, user: Option<&str>) -> Record {
    let filter = user.map(|user| FilterMessage {
        headers: vec![HeaderRuleMessage {
            name: "x-user".into(),
            member: None,
            value: Some(header_rule::Value::Exact(user.into())),
        }],
        rule_count: 1,
        ..FilterMessage::default()
    });
    let held = Held {
        id: id.into(),
        what: wire::Kind::Intercept.into(),
        ports: vec![HeldPort { port: 8080, transport: wire::Transport::Tcp.into(), ..HeldPort::default() }],
        filter,
        holder: "ann@laptop".into(),
        ..held("deployment/web", "web")
    };
    Record { held, session: key.id.clone(), secret_sha256: secret_sha256(&key.secret) }
}

fn phase(registry: &Registry, id: &str) -> Option<Phase> {
    registry.phase(id).map(|phase| phase.borrow().clone())
}

#[tokio::test]
async fn filters_that_are_disjoint_share_a_workload_and_others_are_refused_by_the_holders_name() {
    let registry = registry();
    let ann = client(&registry);
    for user in ["ann", "bob"] {
        registry.add(record(user, &ann.key, Some(user)), &stand_in(), false).unwrap();
    }
    for user in [Some("ann"), None] {
        let refused = registry.add(record("again", &ann.key, user), &stand_in(), true).unwrap_err();
        assert!(refused.message.contains("ann@laptop") && refused.message.contains("8080"), "{refused:?}");
    }
    let tap = record("tap", &ann.key, None);
    let tap = Record { held: Held { what: wire::Kind::Wiretap.into(), ..tap.held }, ..tap };
    registry.add(tap, &stand_in(), false).unwrap();
    let other = StandIn::of("tp-system", &held("deployment/canary", "web"));
    let refused = registry.add(record("other", &ann.key, None), &other, false).unwrap_err();
    assert!(refused.message.contains("engaged as that of deployment/web"), "one Service is narrowed to one stand-in");
}

#[tokio::test]
async fn a_holder_that_is_gone_is_replaced_when_that_is_asked_for() {
    let registry = registry();
    let (ann, bob) = (client(&registry), client(&registry));
    registry.add(record("old", &ann.key, None), &stand_in(), false).unwrap();
    let refused = registry.add(record("new", &bob.key, None), &stand_in(), true).unwrap_err();
    assert!(!refused.hint.contains("--replace-held"), "its holder is here");
    drop(ann);
    let refused = registry.add(record("new", &bob.key, None), &stand_in(), false).unwrap_err();
    assert!(refused.hint.contains("--replace-held"), "{refused:?}");
    registry.add(record("new", &bob.key, None), &stand_in(), true).unwrap();
    assert_eq!((phase(&registry, "old"), phase(&registry, "new")), (Some(Phase::Ending), Some(Phase::Pending)));
}

#[tokio::test(start_paused = true)]
async fn what_a_lease_tells_of_is_kept_for_the_grace_time_and_adopted_by_its_holder_alone() {
    let old = SessionKey { id: "s-old".into(), secret: vec![7; 32] };
    let forged = SessionKey { secret: vec![8; 32], ..old.clone() };
    // Whether the client comes back before or after the Leases are read.
    for comes_first in [true, false] {
        let registry = registry();
        let ann = client(&registry);
        registry.adopt(&forged, &ann.key);
        if comes_first {
            registry.adopt(&old, &ann.key);
        }
        assert!(registry.take_up(record("e-1", &old, None), &stand_in(), "u-1".into()));
        assert!(!registry.take_up(record("e-1", &old, None), &stand_in(), "u-1".into()), "it is known");
        if !comes_first {
            registry.adopt(&forged, &ann.key);
            assert!(registry.held_by(&ann.session).engagements.is_empty());
            registry.adopt(&old, &ann.key);
        }
        assert_eq!(registry.held_by(&ann.session).engagements.len(), 1);
        tokio::time::sleep(Duration::from_secs(121)).await;
        registry.end_without_session();
        assert_eq!(phase(&registry, "e-1"), Some(Phase::InForce));
    }
    let registry = registry();
    registry.take_up(record("e-1", &old, None), &stand_in(), "u-1".into());
    tokio::time::sleep(Duration::from_secs(119)).await;
    registry.end_without_session();
    assert_eq!(phase(&registry, "e-1"), Some(Phase::InForce));
    tokio::time::sleep(Duration::from_secs(2)).await;
    registry.end_without_session();
    assert_eq!(phase(&registry, "e-1"), Some(Phase::Ending));
}

#[tokio::test]
async fn goodbye_ends_what_the_session_holds() {
    let registry = registry();
    let ann = client(&registry);
    registry.add(record("e-1", &ann.key, None), &stand_in(), false).unwrap();
    registry.end_without_session();
    assert_eq!(phase(&registry, "e-1"), Some(Phase::Pending));
    registry.hub().goodbye(&ann.session, "quit".into());
    registry.end_without_session();
    assert_eq!(phase(&registry, "e-1"), Some(Phase::Ending));
    assert_eq!(registry.held_by_the_awake(), []);
}

#[tokio::test]
async fn only_a_lease_of_the_same_uid_ends_an_engagement() {
    let registry = registry();
    let ann = client(&registry);
    registry.add(record("e-1", &ann.key, None), &stand_in(), false).unwrap();
    registry.on_lease_made("e-1", "u-1".into());
    registry.on_lease_gone("e-1", Some("u-2"), true);
    assert_eq!(phase(&registry, "e-1"), Some(Phase::Pending));
    registry.on_lease_gone("e-1", Some("u-1"), false);
    assert_eq!(phase(&registry, "e-1"), Some(Phase::Ending));
    registry.set_phase("e-1", Phase::Ended);
    assert!(!registry.take_up(record("e-1", &ann.key, None), &stand_in(), "u-1".into()), "its Lease goes still");
    registry.on_lease_gone("e-1", Some("u-1"), true);
    assert!(registry.with_lease().is_empty());
}

#[tokio::test]
async fn who_waits_for_an_engagement_learns_why_it_failed() {
    let registry = registry();
    let ann = client(&registry);
    registry.add(record("e-1", &ann.key, None), &stand_in(), false).unwrap();
    let mut phase = registry.phase("e-1").unwrap();
    let why = failure("no image", "");
    registry.set_phase("e-1", Phase::Failed(why.clone()));
    registry.set_phase("e-1", Phase::Ended);
    assert_eq!(*phase.wait_for(|phase| *phase != Phase::Pending).await.unwrap(), Phase::Failed(why));
}

#[tokio::test]
async fn agents_answer_for_their_own_stand_in_and_for_the_orders_of_now() {
    let registry = registry();
    let ann = client(&registry);
    registry.add(record("e-1", &ann.key, None), &stand_in(), false).unwrap();
    let pod = format!("{}-x7c2d", stand_in().name);
    let orders = Orders::default();
    assert_eq!(registry.order("shop", &pod, &orders), None, "it is not here");
    let seat = registry.seat("shop", &pod);
    let elsewhere = registry.seat("shop", "web-1");
    let more = Orders { ports: vec![tp_protocol::engage::call::AgentPort::default()], ..orders };
    assert_eq!(registry.order("shop", &pod, &more), None);
    assert_eq!(seat.orders.borrow().number, 1);
    let report = Report { id: "e-1#8080/tcp".into(), is_away: true, ..Report::default() };
    let said = AgentState { number: 1, reports: vec![report], ..AgentState::default() };
    elsewhere.on_state(said.clone());
    assert_eq!(registry.list("shop", &ann.session)[0].report, None, "another pod has no say");
    seat.on_state(said.clone());
    assert_eq!(registry.order("shop", &pod, &more), Some(said));
    assert!(registry.list("shop", &ann.session)[0].report.as_ref().unwrap().is_away);
    let id = EngagementId::new("e-1").unwrap();
    let arrival =
        Arrival { port: 8080, transport: tp_protocol::open::Transport::Tcp, source: "10.0.0.1:1".parse().unwrap() };
    let refused = registry.reach(elsewhere.pod(), &id, &arrival).await.unwrap_err();
    assert_eq!(refused.class, ErrorClass::Denied);
}

#[tokio::test]
async fn where_the_workloads_own_pods_have_the_agents_all_of_these_answer_and_no_other_pod() {
    let registry = registry();
    let ann = client(&registry);
    let mut record_in_pods = record("e-1", &ann.key, Some("ann"));
    record_in_pods.held.mode = Mode::Sidecar.into();
    let in_pods = StandIn::of("tp-system", &record_in_pods.held);
    registry.add(record_in_pods, &in_pods, false).unwrap();
    let seats = ["web-1", "web-2", "web-3"].map(|pod| registry.seat("shop", pod));
    let report = Report { id: "e-1#8080/tcp".into(), taken: 2, ..Report::default() };
    let said = AgentState { number: 1, reports: vec![report], ..AgentState::default() };
    let taken = |pods: &[&str]| {
        registry.set_pods(&in_pods, pods.iter().map(|&pod| pod.to_owned()).collect());
        seats.iter().for_each(|seat| seat.on_state(said.clone()));
        registry.list("shop", &ann.session)[0].report.as_ref().map(|report| report.taken)
    };
    assert_eq!(taken(&[]), None);
    assert_eq!(taken(&["web-1", "web-2"]), Some(4));
    assert_eq!(taken(&["web-2"]), Some(2));
    let id = EngagementId::new("e-1").unwrap();
    let arrival =
        Arrival { port: 8080, transport: tp_protocol::open::Transport::Tcp, source: "10.0.0.1:1".parse().unwrap() };
    assert_eq!(registry.reach(seats[0].pod(), &id, &arrival).await.unwrap_err().class, ErrorClass::Denied);
    let by_stand_in = registry.add(record("e-2", &ann.key, Some("bob")), &stand_in(), false).unwrap_err();
    assert_eq!(by_stand_in.hint, "engage it with --mode sidecar as well");
}

#[tokio::test]
async fn workloads_without_a_service_do_not_get_in_each_others_way() {
    let registry = registry();
    let ann = client(&registry);
    for workload in ["deployment/web", "deployment/worker"] {
        let ingest = Held { id: workload.into(), what: wire::Kind::Ingest.into(), ..held(workload, "") };
        let record = Record { held: ingest.clone(), ..record("x", &ann.key, None) };
        registry.add(record, &StandIn::of("tp-system", &ingest), false).unwrap();
    }
}

#[tokio::test]
async fn an_agent_tells_its_environment_to_all_who_ask() {
    let registry = registry();
    let ann = client(&registry);
    registry.add(record("web-1", &ann.key, None), &stand_in(), false).unwrap();
    assert!(registry.ask_environment("web-1").unwrap_err().message.contains("not connected"));
    let seat = registry.seat("shop", &format!("{}-x7c2d", stand_in().name));
    let mut questions = seat.questions.clone();
    let asked = [registry.ask_environment("web-1").unwrap(), registry.ask_environment("web-1").unwrap()];
    assert!(questions.has_changed().unwrap());
    questions.mark_unchanged();
    let told = Environment { container: "web".into(), ..Environment::default() };
    seat.on_environment(&told);
    for asked in asked {
        assert_eq!(asked.await.unwrap(), told);
    }
    let lost = registry.ask_environment("web-1").unwrap();
    drop(seat);
    assert!(lost.await.is_err(), "who asks learns that the agent has gone");
}
