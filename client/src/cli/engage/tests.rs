use clap::Parser;
use tp_protocol::engage::call::{Held, HeldPort, Report};
use tp_protocol::engage::filter::Filter;
use tp_protocol::engage::wire;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: EngageArgs,
}

/// An intercept as the manager tells of it.
pub(in crate::cli) fn example() -> Held {
    let filter = Filter::new(vec!["x-user=ann".parse().unwrap()], vec![http::Method::GET], Vec::new()).unwrap();
    Held {
        id: "tp-web-x7c2d".into(),
        namespace: "shop".into(),
        workload: "deployment/web".into(),
        service: "web".into(),
        what: Kind::Intercept.into(),
        mode: call::Mode::StandIn.into(),
        why_mode: "it restarts nothing".into(),
        ports: vec![HeldPort {
            port: 8080,
            transport: Transport::Tcp.into(),
            service_port: 80,
            local: "127.0.0.1:9000".into(),
        }],
        filter: Some((&filter).into()),
        when_away: wire::WhenAway::Cluster.into(),
        wait_ms: 2_000,
        holder: "ann@laptop".into(),
        since: 1_000_000,
        is_mine: false,
        report: Some(Report { id: "tp-web-x7c2d".into(), taken: 7, fallen_back: 1, ..Report::default() }),
        problem: String::new(),
    }
}

fn parse(line: &str) -> Result<Engage> {
    let line = Line::try_parse_from(["tp"].into_iter().chain(line.split_whitespace())).unwrap();
    line.args.to_message(Kind::Intercept, "shop", "ann@laptop".into())
}

fn refused(line: &str) -> String {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{line}");
    error.message().to_owned()
}

#[test]
fn without_flags_the_only_port_is_meant() {
    let engage = parse("web").unwrap();
    let expected = Engage {
        namespace: "shop".into(),
        workload: "web".into(),
        ports: vec![AskedPort { remote: String::new(), transport: Transport::Tcp.into(), local: "127.0.0.1:0".into() }],
        what: Kind::Intercept.into(),
        when_away: wire::WhenAway::Cluster.into(),
        wait_ms: 2_000,
        mode: call::Mode::Auto.into(),
        holder: "ann@laptop".into(),
        ..Engage::default()
    };
    assert_eq!(engage, expected);
}

#[test]
fn every_flag_is_passed_on() {
    let engage = parse(
        "deployment/web -n other --service web --container app -p 9000:http -p 9001:8081 --address ::1 --when-away hold \
         --wait 500ms --mode stand-in --replace-held",
    )
    .unwrap();
    assert_eq!((engage.namespace.as_str(), engage.workload.as_str()), ("other", "deployment/web"));
    assert_eq!((engage.service.as_str(), engage.container.as_str()), ("web", "app"));
    let ports: Vec<_> = engage.ports.iter().map(|port| (port.remote.as_str(), port.local.as_str())).collect();
    assert_eq!(ports, [("http", "[::1]:9000"), ("8081", "[::1]:9001")]);
    assert_eq!((engage.when_away(), engage.wait_ms), (wire::WhenAway::Hold, 500));
    assert_eq!((engage.mode(), engage.replace_held), (call::Mode::StandIn, true));
    assert_eq!(engage.filter, None);
}

#[test]
fn filters_are_read_as_the_protocol_writes_them() {
    let filter = |line: &str| {
        let message = parse(&format!("web {line}")).unwrap().filter.unwrap();
        Filter::try_from(&message).unwrap().to_string()
    };
    assert_eq!(filter("--http-header x-user=ann --http-header baggage:team=~red|blue"), {
        "x-user=ann and baggage:team=~red|blue"
    });
    assert_eq!(filter("--http-method post --http-method GET"), "(GET or POST)");
    assert_eq!(
        filter(
            "--http-path-equal /a --http-path-prefix /b/ --http-path-regex /c.* --grpc shop.Cart --grpc shop.Cart/Add"
        ),
        "(path /a or path /b/... or path =~/c.* or path /shop.Cart/... or path /shop.Cart/Add)"
    );
}

#[test]
fn flags_that_do_not_go_together_are_named() {
    assert_eq!(
        refused("web --http-header x-user=ann --http-header x-user=bob"),
        "no request can match both `x-user=ann` and `x-user=bob`: a header has one value (`=~` takes several, as in \
         `=~ann|bob`)"
    );
    assert_eq!(refused("web --wait 2m"), "--wait 2m is longer than 1m");
    assert_eq!(
        refused("dns -p 53/udp --http-method GET"),
        "a UDP port carries no requests that a filter could be about"
    );
    assert_eq!(refused("web -p 8080:http -p 9000"), "--port 9000 does not say which port of the workload it is for");
    assert!(parse("dns -p 53 -p 53/udp").is_ok(), "one of each transport");
}

fn told(held: Held) -> String {
    text::engaged(&held.into(), "dev")
}

#[test]
fn people_are_told_what_goes_where_and_what_to_do() {
    assert_eq!(
        told(example()),
        "\
Intercepting deployment/web in namespace shop.
  Port:    80 of Service web (8080/tcp in its pods) -> 127.0.0.1:9000
  Traffic: requests with x-user=ann and GET; all others go to the cluster's pods
  Away:    while your handler is, the cluster's pods answer after 2s
  Mode:    stand-in: it restarts nothing
Start your handler: it listens on port 9000 in `tp docker-run --use dev IMAGE`.
`tp leave web` ends it.
"
    );
    let wiretap = Held {
        what: Kind::Wiretap.into(),
        filter: None,
        why_mode: String::new(),
        problem: "no pod of it is ready".into(),
        ports: vec![
            HeldPort { port: 53, transport: Transport::Udp.into(), service_port: 0, local: "127.0.0.1:53".into() },
            HeldPort { port: 53, transport: Transport::Tcp.into(), service_port: 0, local: "127.0.0.1:53".into() },
        ],
        ..example()
    };
    assert_eq!(
        told(wiretap),
        "\
Listening to deployment/web in namespace shop.
  Port:    53/udp -> 127.0.0.1:53
  Port:    53/tcp -> 127.0.0.1:53
  Traffic: a copy of all of it; the cluster's pods answer
  Away:    copies are lost while your handler is away
  Mode:    stand-in
  Problem: no pod of it is ready
Start your handler: it listens on ports 53/udp and 53 in `tp docker-run --use dev IMAGE`.
`tp leave web` ends it.
"
    );
}

#[test]
fn what_happens_when_the_handler_is_away_is_told() {
    let text = |when_away: wire::WhenAway| told(Held { when_away: when_away.into(), wait_ms: 0, ..example() });
    let at_once = text(wire::WhenAway::Fail);
    assert!(at_once.contains("  Away:    while your handler is, callers are refused\n"), "{at_once}");
    let held = text(wire::WhenAway::Hold);
    assert!(held.contains("  Away:    while your handler is, callers wait for it\n"), "{held}");
}

#[test]
fn handler_elsewhere_is_named_by_its_address() {
    let mut held = example();
    held.ports[0].local = "172.18.0.4:9000".into();
    let text = told(held);
    assert!(text.contains("Start your handler: it listens on 172.18.0.4:9000.\n"), "{text}");
}

#[test]
fn json_keys_are_stable() {
    insta::assert_json_snapshot!(EngagementReport::from(example()));
}

#[test]
fn what_a_later_version_says_is_shown_as_unknown() {
    let mut held = Held { what: 9, mode: 9, when_away: 9, ..example() };
    held.filter.as_mut().unwrap().rule_count = 3;
    let report = EngagementReport::from(held);
    assert_eq!(report.filter_text(), "rules that this tp does not know");
    assert_eq!(report.what, report::What::Unknown);
}
