use super::report::State;
use super::*;
use crate::attach::{Agent, TunnelState};
use crate::cli::select::example;

fn status() -> Status {
    Status {
        tunnel: TunnelState::Connected.into(),
        connected_at: 1_000_000,
        manager_pod: "tp-manager-0".into(),
        manager_version: "0.1.0".into(),
        daemon_version: env!("CARGO_PKG_VERSION").into(),
        cluster_domain: "cluster.local".into(),
        service_subnets: vec!["10.96.0.0/16".into()],
        pod_subnets: vec!["10.244.0.0/24".into(), "10.244.1.0/24".into()],
        routed_subnets: vec!["10.96.0.0/16".into(), "10.244.0.0/16".into()],
        dns_address: "198.18.0.2".into(),
        dns_search: vec!["default.svc.cluster.local".into()],
        agents: vec![Agent { namespace: "default".into(), pod: "web-1".into(), version: "0.1.0".into() }],
        lanes: 1,
        tcp_flows: 3,
        udp_flows: 1,
        bytes_up: 1536,
        bytes_down: 5 << 20,
        resident_bytes: 12 << 20,
        restarts: 1,
        ..Status::default()
    }
}

fn handler(name: &str, running: bool) -> Handler {
    Handler { name: name.into(), id: "1".into(), image: "img".into(), status: "Up".into(), running }
}

fn rendered(connections: Vec<ConnectionReport>) -> String {
    text::render(&Report { connections }, Timestamp::from_second(1_000_090).unwrap())
}

#[test]
fn connected() {
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status())), vec![handler("app", true)]);
    assert_eq!(report.state, State::Connected);
    assert_eq!(
        rendered(vec![report]),
        "dev (tp-dev): connected for 1m30s\n  \
           Context:    context-dev (https://k:6443)\n  \
           Namespace:  default\n  \
           Manager:    0.1.0, tp-manager-0 in tp-system\n  \
           Domain:     cluster.local\n  \
           Services:   10.96.0.0/16\n  \
           Pods:       10.244.0.0/24, 10.244.1.0/24\n  \
           DNS:        198.18.0.2 (default.svc.cluster.local)\n  \
           Agents:     default/web-1 0.1.0\n  \
           Traffic:    3 TCP and 1 UDP open, 1.5 KiB up, 5.0 MiB down\n  \
           Daemon:     0.1.0, 12.0 MiB, restarted once\n  \
           Containers: app (img)\n"
    );
}

#[test]
fn subnets_that_the_user_added_or_took_out_are_shown() {
    let mut status = status();
    status.routed_subnets = vec!["10.96.0.0/16".into(), "10.9.0.0/16".into()];
    status.excluded_subnets = vec!["10.244.0.0/16".into()];
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status)), Vec::new());
    let text = rendered(vec![report]);
    assert!(text.contains("  Also:       10.9.0.0/16\n  Never:      10.244.0.0/16\n  DNS:"), "{text}");
    assert!(!text.contains("->"), "nothing is missing: {text}");
}

#[test]
fn what_is_seen_as_something_else_is_shown() {
    let mut status = status();
    let virtual_subnet = crate::attach::VirtualSubnet {
        subnet: "10.244.1.0/24".into(),
        seen_as: "240.0.0.0/24".into(),
        reason: "overlaps with 10.244.1.0/25, a network of the container".into(),
    };
    status.routed_subnets = vec!["10.96.0.0/16".into(), "10.244.0.0/24".into(), "240.0.0.0/24".into()];
    status.virtual_subnets = vec![virtual_subnet];
    status.virtual_addresses = 2;
    status.dns_mappings = vec!["db=web.shop.svc.cluster.local".into()];
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status)), Vec::new());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["virtual"][0]["seenAs"], "240.0.0.0/24");
    assert_eq!(
        (&json["dns"]["virtualAddresses"], &json["dns"]["mappings"][0]),
        (&2.into(), &"db=web.shop.svc.cluster.local".into())
    );
    let text = rendered(vec![report]);
    for line in [
        "  Virtual:    10.244.1.0/24 as 240.0.0.0/24 (overlaps with 10.244.1.0/25, a network of the container)\n",
        "  Mapped:     db=web.shop.svc.cluster.local\n",
        "  Outside:    2 addresses of the cluster's names, seen as virtual ones\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("Also:") && !text.contains("->"), "nothing is added, nothing is missing: {text}");
}

#[test]
fn who_the_connection_belongs_to_is_shown_where_the_manager_asks() {
    let shown = |status| {
        let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status)), Vec::new());
        (serde_json::to_value(&report).unwrap(), rendered(vec![report]))
    };
    let groups = |count: usize| (1..=count).map(|number| format!("g{number}")).collect();
    let user = |count| Some(crate::attach::User { name: "ann".into(), groups: groups(count) });
    let (json, text) = shown(Status { user: user(2), ..status() });
    assert_eq!(json["user"], serde_json::json!({"name": "ann", "groups": ["g1", "g2"]}));
    assert!(text.contains("  User:       ann (g1, g2)\n  Domain:"), "{text}");
    let (_, text) = shown(Status { user: user(7), ..status() });
    assert!(text.contains("  User:       ann (g1, g2, g3, g4, g5, and 2 more)\n"), "{text}");
    let (json, text) = shown(Status { user_problem: "nobody knows".into(), ..status() });
    assert!(json.get("user").is_none() && json["userProblem"] == "nobody knows", "{json}");
    assert!(text.contains("  User:       nobody knows\n"), "{text}");
    let (json, text) = shown(status());
    assert!(json.get("user").is_none() && json.get("userProblem").is_none() && !text.contains("User:"), "{text}");
}

#[test]
fn what_is_engaged_is_shown() {
    let engagements = vec![crate::cli::engage::example()];
    let status = Status { engagements, engaged_connections: 2, ..status() };
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status)), Vec::new());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["engagements"][0]["id"], "tp-web-x7c2d");
    assert_eq!(json["traffic"]["engagedConnections"], 2);
    let text = rendered(vec![report]);
    let line = "intercept of deployment/web in shop (x-user=ann and GET), 8080/tcp -> 127.0.0.1:9000, active";
    assert!(text.contains(&format!("  Engaged:    {line}\n  Traffic:")), "{text}");
}

#[test]
fn not_connected() {
    let empty = Report { connections: Vec::new() };
    assert!(!empty.is_connected());
    assert!(text::render(&empty, Timestamp::UNIX_EPOCH).starts_with("Not connected. "));
    assert_eq!(serde_json::to_string(&empty).unwrap(), r#"{"connections":[]}"#);
}

#[test]
fn ended_connection_says_why_and_what_to_do() {
    let ended = Ended { code: 3, at: String::new(), out_of_memory: false };
    let report =
        ConnectionReport::new(&example("dev"), Answer::Ended(ended), vec![handler("app", true), handler("old", false)]);
    let text = rendered(vec![report]);
    assert!(text.starts_with("dev (tp-dev): ended: it was idle for longer than its idle limit\n"), "{text}");
    assert!(text.contains("`tp quit --use dev` removes what is left"), "{text}");
    assert!(text.contains("until they are started again: app\n"), "{text}");
}

#[test]
fn lost_tunnel_still_counts_as_connected() {
    let lost =
        Status { tunnel: TunnelState::Reconnecting.into(), tunnel_error: "connection refused".into(), ..status() };
    let report =
        Report { connections: vec![ConnectionReport::new(&example("dev"), Answer::Status(Box::new(lost)), vec![])] };
    assert!(report.is_connected());
    let text = rendered(report.connections);
    assert!(text.starts_with("dev (tp-dev): reconnecting: connection refused\n"), "{text}");
}

#[test]
fn removed_container_leaves_those_that_had_joined() {
    let report = ConnectionReport::gone("dev".into(), vec![handler("app", true)]);
    let text = rendered(vec![report]);
    assert!(text.starts_with("dev (tp-dev): gone: its container was removed\n"), "{text}");
    assert!(text.contains("docker rm -f app"), "{text}");
}

#[test]
fn new_subnets_are_pointed_out() {
    let grown = Status { pod_subnets: vec!["10.245.0.0/24".into()], ..status() };
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(grown)), vec![]);
    assert_eq!(report.unrouted(), ["10.245.0.0/24"]);
    assert!(rendered(vec![report]).contains("new subnets are not routed (10.245.0.0/24)"));
}

#[test]
fn json_keys_are_stable() {
    let report = ConnectionReport::new(&example("dev"), Answer::Status(Box::new(status())), vec![handler("app", true)]);
    insta::assert_json_snapshot!(Report { connections: vec![report] });
}
