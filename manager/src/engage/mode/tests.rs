//! What was asked for, and what there is.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tp_protocol::engage::call::AppProtocol;
use tp_protocol::engage::wire::Transport;

use super::*;

fn workload(labels: &Value) -> Workload {
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web"}]}});
    Workload {
        kind: Kind::Deployment,
        name: "web".into(),
        selector: BTreeMap::new(),
        template: serde_json::from_value(template).unwrap(),
    }
}

fn port(target_name: Option<&str>) -> Port {
    Port {
        service_port: 80,
        name: String::new(),
        container_port: 8080,
        target_name: target_name.map(str::to_owned),
        transport: Transport::Tcp,
        protocol: AppProtocol::Http,
    }
}

fn pod(has_agent: bool) -> Pod {
    let agent = json!([{
        "name": "tp-agent", "ports": [{"name": "http", "containerPort": 7491}],
        "env": [{"name": "TP_AGENT_CONTAINER", "value": "web"}],
    }]);
    let spec = json!({"containers": [{"name": "web"}], "initContainers": if has_agent { agent } else { json!([]) }});
    serde_json::from_value(json!({"spec": spec})).unwrap()
}

/// Decides about `http` of a workload with these pods.
fn choose(asked: Mode, inject: Inject, pods: &[Pod]) -> Result<Choice, Failure> {
    let (workload, ports) = (workload(&json!({})), [port(Some("http"))]);
    Wish { asked, inject, pods, ..wish(&workload, &ports) }.choose()
}

fn wish<'a>(workload: &'a Workload, ports: &'a [Port]) -> Wish<'a> {
    Wish {
        asked: Mode::Sidecar,
        default: config::Mode::Auto,
        inject: Inject::OnDemand,
        namespace: "shop",
        workload,
        ports,
        headless: None,
        container: "web",
        others: None,
        pods: &[],
        is_connected: true,
    }
}

#[test]
fn auto_takes_agents_that_are_there_and_restarts_nothing() {
    for asked in [Mode::Auto, Mode::Unspecified] {
        for (inject, pods, mode) in [
            (Inject::OnDemand, vec![pod(true), pod(true)], Mode::Sidecar),
            (Inject::Enabled, vec![pod(true)], Mode::Sidecar),
            (Inject::Never, vec![pod(true)], Mode::StandIn),
            (Inject::OnDemand, vec![pod(true), pod(false)], Mode::StandIn),
            (Inject::OnDemand, vec![], Mode::StandIn),
        ] {
            let choice = choose(asked, inject, &pods).unwrap();
            assert_eq!((choice.mode, choice.restarts), (mode, false), "{inject:?}, {} pods", pods.len());
        }
    }
}

#[test]
fn auto_takes_no_agents_that_do_not_do_what_is_asked_for() {
    let (workload, pods) = (workload(&json!({})), [pod(true)]);
    let mode = |ports: &[Port], container: &str, others: Option<Mode>| {
        let wish = Wish { asked: Mode::Auto, container, others, pods: &pods, ..wish(&workload, ports) };
        wish.choose().unwrap().mode
    };
    assert_eq!(mode(&[port(Some("http"))], "web", Some(Mode::Sidecar)), Mode::Sidecar);
    assert_eq!(mode(&[port(None)], "web", None), Mode::StandIn);
    assert_eq!(mode(&[port(Some("admin"))], "web", None), Mode::StandIn);
    assert_eq!(mode(&[], "web", None), Mode::Sidecar, "for its environment");
    assert_eq!(mode(&[], "proxy", None), Mode::StandIn);
    assert_eq!(mode(&[], "", None), Mode::Sidecar, "any will do");
    assert_eq!(mode(&[port(Some("http"))], "web", Some(Mode::StandIn)), Mode::StandIn, "others have one");
    let elsewhere = Wish { asked: Mode::Auto, is_connected: false, pods: &pods, ..wish(&workload, &[]) };
    assert_eq!(elsewhere.choose().unwrap().mode, Mode::StandIn, "they are another manager's, or cannot reach this one");
}

#[test]
fn the_chart_decides_where_the_client_does_not() {
    let (workload, ports) = (workload(&json!({})), [port(Some("http"))]);
    let choose = |asked, default| Wish { asked, default, ..wish(&workload, &ports) }.choose().unwrap();
    let choice = choose(Mode::Unspecified, config::Mode::Sidecar);
    let why = "the chart's engage.mode says so";
    assert_eq!(choice, Choice { mode: Mode::Sidecar, why, restarts: true, is_headless: false });
    assert_eq!(choose(Mode::Unspecified, config::Mode::StandIn).mode, Mode::StandIn);
    assert_eq!(choose(Mode::Auto, config::Mode::Sidecar).mode, Mode::StandIn);
    let look = Wish { asked: Mode::Unspecified, default: config::Mode::Sidecar, ..wish(&workload, &[]) };
    assert_eq!(look.choose().unwrap().mode, Mode::StandIn, "nothing is restarted for an environment");
    assert_eq!(choose(Mode::StandIn, config::Mode::Sidecar).why, "it was asked for");
}

#[test]
fn sidecars_are_refused_with_the_way_out() {
    let refused = |wish: Wish<'_>| wish.choose().unwrap_err();
    let (plain, ports) = (workload(&json!({})), [port(Some("http"))]);
    for (why, words) in [
        (refused(Wish { inject: Inject::Never, ..wish(&plain, &ports) }), "puts no agents into"),
        (refused(wish(&plain, &[port(None)])), "leads port 80 to port 8080 by number"),
        (refused(Wish { inject: Inject::Enabled, ..wish(&plain, &ports) }), "are made without agents"),
        (refused(wish(&workload(&json!({"tp/inject": "disabled"})), &ports)), "wants no agents"),
        (
            refused(Wish { pods: &[pod(true)], ..wish(&plain, &[port(Some("admin"))]) }),
            "do not take over its port admin",
        ),
    ] {
        assert!(why.message.contains(words) && why.hint.contains("--mode stand-in"), "{why:?}");
    }
}

#[test]
fn pods_are_restarted_only_where_some_have_no_agent_and_the_chart_lets_it() {
    let restarts = |inject, pods: &[Pod]| choose(Mode::Sidecar, inject, pods).unwrap().restarts;
    assert!(!restarts(Inject::OnDemand, &[pod(true)]));
    assert!(restarts(Inject::OnDemand, &[pod(true), pod(false)]));
    assert!(!restarts(Inject::Enabled, &[pod(true)]));
    let (asking, ports) = (workload(&json!({"tp/inject": "enabled"})), [port(Some("http"))]);
    let on_its_way = Wish { inject: Inject::Enabled, pods: &[pod(false)], ..wish(&asking, &ports) };
    assert!(!on_its_way.choose().unwrap().restarts);
}

#[test]
fn what_nothing_makes_again_is_not_restarted() {
    let ports = [port(Some("http"))];
    let alone = |labels: &Value| Workload { kind: Kind::Pod, ..workload(labels) };
    let (plain, asking) = (alone(&json!({})), alone(&json!({"tp/inject": "enabled"})));
    for inject in [Inject::OnDemand, Inject::Enabled] {
        let Failure { message, hint } = Wish { inject, ..wish(&plain, &ports) }.choose().unwrap_err();
        assert!(
            message.starts_with("pod/web is without an agent, ") && message.ends_with("make it again"),
            "{message}"
        );
        assert!(hint.contains("--mode stand-in") && hint.contains("label tp/inject: enabled"), "{hint}");
        assert!(!Wish { inject, ..wish(&asking, &ports) }.choose().unwrap().restarts, "its agent may be on its way");
    }
}

#[test]
fn the_traffic_of_a_headless_service_is_for_agents_alone() {
    let (plain, ports, pods) = (workload(&json!({})), [port(Some("http"))], [pod(true)]);
    let headless = |asked, pods| Wish { asked, pods, headless: Some("peers"), ..wish(&plain, &ports) };
    for asked in [Mode::StandIn, Mode::Auto, Mode::Unspecified] {
        let Failure { message, hint } = headless(asked, &[]).choose().unwrap_err();
        assert!(message.starts_with("the Service peers is headless: ") && hint.contains("`--mode sidecar`"), "{hint}");
    }
    for (asked, restarts) in [(Mode::Auto, false), (Mode::Sidecar, false), (Mode::Sidecar, true)] {
        let pods: &[Pod] = if restarts { &[] } else { &pods };
        let choice = headless(asked, pods).choose().unwrap();
        assert_eq!((choice.mode, choice.restarts), (Mode::Sidecar, restarts));
        let why = choice.of(Held::default()).why_mode;
        assert!(
            why.ends_with("; its Service is headless, so callers that know the port's number pass the agents by"),
            "{why}"
        );
    }
    let by_number = [port(None)];
    let refused = Wish { headless: Some("peers"), ..wish(&plain, &by_number) }.choose().unwrap_err();
    assert!(refused.hint.ends_with("the headless Service peers send, a stand-in gets nothing)"), "{refused:?}");
}
