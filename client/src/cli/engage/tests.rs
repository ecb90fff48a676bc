use clap::Parser;
use tp_protocol::engage::call::{self, AskedPort, HeldPort, Report};
use tp_protocol::engage::filter::Filter;
use tp_protocol::engage::wire::Transport;

use super::*;

/// The flags of `tp intercept`, which has all groups.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    away: AwayArgs,
    #[command(flatten)]
    engage: EngageArgs,
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
        container: "app".into(),
        mounts: Vec::new(),
        to_pod: Vec::new(),
    }
}

/// What the manager is asked for by the command of this kind, with the groups of flags that it has.
fn asked(kind: Kind, line: &str) -> Result<Engage> {
    let Line { traffic, filter, away, engage } =
        Line::try_parse_from(["tp"].into_iter().chain(line.split_whitespace())).unwrap();
    let wish = Wish {
        kind,
        engage,
        traffic: (kind != Kind::Ingest).then_some(traffic),
        filter: matches!(kind, Kind::Intercept | Kind::Wiretap).then_some(filter),
        away: matches!(kind, Kind::Intercept | Kind::Replace).then_some(away),
    };
    wish.to_message("shop", "ann@laptop".into())
}

fn parse(line: &str) -> Result<Engage> {
    asked(Kind::Intercept, line)
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
        limit_ms: 120_000,
        holder: "ann@laptop".into(),
        ..Engage::default()
    };
    assert_eq!(engage, expected);
}

#[test]
fn every_flag_is_passed_on() {
    let engage = parse(
        "deployment/web -n other --service web --container app -p 9000:http -p 9001:8081 --address ::1 --when-away hold \
         --wait 500ms --mode stand-in --replace-held --to-pod 6379 --to-pod 9/tcp",
    )
    .unwrap();
    assert_eq!((engage.namespace.as_str(), engage.workload.as_str()), ("other", "deployment/web"));
    assert_eq!((engage.service.as_str(), engage.container.as_str()), ("web", "app"));
    let ports: Vec<_> = engage.ports.iter().map(|port| (port.remote.as_str(), port.local.as_str())).collect();
    assert_eq!(ports, [("http", "[::1]:9000"), ("8081", "[::1]:9001")]);
    assert_eq!((engage.when_away(), engage.wait_ms), (wire::WhenAway::Hold, 500));
    assert_eq!((engage.mode(), engage.replace_held), (call::Mode::StandIn, true));
    assert_eq!(engage.to_pod.iter().map(|it| it.port).collect::<Vec<_>>(), [6379, 9]);
    assert_eq!(parse("web --mode auto").unwrap().mode(), call::Mode::Auto);
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

#[test]
fn a_replace_takes_all_ports_and_callers_are_refused_without_a_handler() {
    let engage = asked(Kind::Replace, "web").unwrap();
    assert_eq!((engage.ports.len(), engage.what(), engage.when_away()), (0, Kind::Replace, wire::WhenAway::Fail));
    assert_eq!((engage.wait_ms, engage.filter), (2_000, None));
    let engage = asked(Kind::Replace, "web -p 8080:http --when-away hold --address ::1").unwrap();
    assert_eq!((engage.ports[0].local.as_str(), engage.when_away()), ("[::1]:8080", wire::WhenAway::Hold));
    let error = asked(Kind::Replace, "web --address ::1").unwrap_err();
    assert_eq!(error.message(), "--address ::1 does not say which ports of the handler are meant");
}

#[test]
fn an_ingest_names_no_port_and_a_wiretap_does_not_wait() {
    let engage = asked(Kind::Ingest, "web --container app").unwrap();
    assert_eq!((engage.ports.len(), engage.what(), engage.container.as_str()), (0, Kind::Ingest, "app"));
    let engage = asked(Kind::Wiretap, "web").unwrap();
    assert_eq!((engage.ports.len(), engage.wait_ms), (1, 0));
}

#[test]
fn environment_needs_somewhere_to_go() {
    assert_eq!(refused("web --env A=1"), "--env changes an environment that goes nowhere");
    assert!(parse("web --env A=1 -- img").is_ok() && parse("web --env A=1 --env-json x").is_ok());
    assert_eq!(
        refused("web --env-json - --output json"),
        "standard output cannot be the environment and the report at once"
    );
}

#[test]
fn what_is_behind_two_dashes_is_docker_s() {
    let line = Line::try_parse_from(["tp", "web", "--use", "dev", "--", "--rm", "-it", "img", "--", "x"]).unwrap();
    assert!(line.engage.has_image());
    assert_eq!(line.engage.handler.image, ["--rm", "-it", "img", "--", "x"]);
    for flags in ["--kubeconfig x", "--docker podman", "--context c", "--output json -- img"] {
        let line = format!("tp web {flags}");
        assert!(Line::try_parse_from(line.split_whitespace()).is_err(), "{line}");
    }
}

fn told(held: Held) -> String {
    let report = EngagementReport::from(held);
    text::engaged(&report, &[]) + &text::next(&report, "dev", false)
}

#[test]
fn an_ingest_says_from_where_and_what_to_do_with_it() {
    let mount = call::Mount { path: "/etc/app".into(), volume: "configMap app".into(), is_read_only: true };
    let held = Held {
        what: Kind::Ingest.into(),
        service: String::new(),
        ports: Vec::new(),
        filter: None,
        why_mode: String::new(),
        mounts: vec![mount],
        ..example()
    };
    assert_eq!(
        told(held.clone()),
        "\
Ingesting deployment/web in namespace shop.
  Traffic: none: the cluster's pods serve
  From:    container app
  Volume:  /etc/app (configMap app, read-only)
  Mode:    stand-in
Take its environment here: by --env-file, --env-json, or an image behind `--`.
`tp leave web` ends it.
"
    );
    let (report, files) = (EngagementReport::from(held), vec!["3 variables are in .env".to_owned()]);
    let text = text::engaged(&report, &files) + &text::next(&report, "dev", true);
    assert!(
        text.ends_with("  Mode:    stand-in\n  Written: 3 variables are in .env\n`tp leave web` ends it.\n"),
        "{text}"
    );
    assert_eq!(report.summary(), "ingest of deployment/web in shop (no traffic)");
}

#[test]
fn a_replace_says_that_the_pods_run_on() {
    let text = told(Held { what: Kind::Replace.into(), filter: None, ..example() });
    assert!(text.starts_with("Replacing deployment/web in namespace shop.\n"), "{text}");
    assert!(
        text.contains("  Traffic: all of it; the workload's pods run on, and get none of the Service's\n"),
        "{text}"
    );
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
