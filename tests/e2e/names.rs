//! DNS as a pod sees it.

use std::time::Duration;

use tp_tests::kubectl;
use tp_tests::test::Test;

#[test]
fn unknown_names_are_nxdomain() {
    let test = Test::beside_others();
    let connection = test.shared();
    for name in
        ["nosuch.default.svc.cluster.local", "nosuch.nosuch.svc.cluster.local", "web.default.svc.cluster.local.nosuch"]
    {
        let answer = connection.sh(&format!("dig +time=3 +tries=1 {name}"));
        answer.exits(0).says(&["status: NXDOMAIN"]).within(Duration::from_secs(3));
    }
    for name in ["nosuch", "nosuch.default", "nosuch.default.svc.cluster.local"] {
        // 2: "One or more supplied key could not be found in the database" (getent(1)).
        connection.sh(&format!("getent ahosts {name}")).exits(2).within(Duration::from_secs(5));
    }
}

#[test]
fn known_name_without_an_address_of_that_kind_is_an_empty_answer() {
    let test = Test::beside_others();
    let answer = test.shared().sh("dig +time=3 +tries=1 TXT web.default.svc.cluster.local");
    answer.exits(0).says(&["status: NOERROR", "ANSWER: 0"]);
}

#[test]
fn service_names_have_addresses_ports_and_reverse_names() {
    let test = Test::beside_others();
    let connection = test.shared();
    let ip = kubectl::service_ip("default", "web");
    assert_eq!(connection.sh("dig +short +search web").ok(), ip);
    assert_eq!(connection.sh("dig +short +tcp web.default.svc.cluster.local").ok(), ip);
    let srv = connection.sh("dig +short SRV _http._tcp.web.default.svc.cluster.local").ok();
    assert!(srv.ends_with(" 80 web.default.svc.cluster.local."), "{srv}");
    assert_eq!(connection.sh(&format!("dig +short -x {ip}")).ok(), "web.default.svc.cluster.local.");
}

#[test]
fn headless_service_has_the_addresses_and_the_names_of_its_pods() {
    let test = Test::beside_others();
    let connection = test.shared();
    let path = "jsonpath={range .items[*]}{.status.podIP}{\"\\n\"}{end}";
    let pods = kubectl::admin(&["-n", "default", "get", "pods", "-l", "app=db", "-o", path]).ok();
    let mut pods: Vec<_> = pods.lines().collect();
    pods.sort_unstable();
    let names = connection.sh("dig +short db.default.svc.cluster.local").ok();
    let mut found: Vec<_> = names.lines().collect();
    found.sort_unstable();
    assert_eq!(found, pods);
    for pod in ["db-0", "db-1"] {
        let report = connection.sh(&format!("curl -sS --max-time 5 http://{pod}.db:8080/")).json();
        assert_eq!(report["name"], pod);
    }
}

#[test]
fn alias_leads_to_the_service_that_it_names() {
    let test = Test::beside_others();
    let connection = test.shared();
    let report = connection.sh("curl -sS --max-time 5 http://web-alias/").json();
    assert_eq!(report["name"], "web of shop");
    let cname = connection.sh("dig +short CNAME web-alias.default.svc.cluster.local").ok();
    assert_eq!(cname, "web.shop.svc.cluster.local.");
}

#[test]
fn search_list_is_that_of_a_pod() {
    let test = Test::beside_others();
    let resolver = test.shared().sh("cat /etc/resolv.conf").ok();
    let pod = kubectl::admin(&["exec", "deploy/redis", "--", "cat", "/etc/resolv.conf"]).ok();
    let search = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("search ")).unwrap_or_default();
        line.split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(search(&resolver), search(&pod), "{resolver}");
    assert!(resolver.contains("ndots:5"), "{resolver}");
    let servers = resolver.lines().filter(|line| line.starts_with("nameserver ")).count();
    assert_eq!(servers, 1, "{resolver}");
}

#[test]
fn connected_namespace_decides_what_short_names_mean() {
    let test = Test::beside_others();
    let scope = test.scope();
    scope.tp(["connect", "--namespace", "shop"]).run().ok();
    let client = scope.join(tp_tests::docker::Spec::client());
    assert_eq!(client.sh("curl -sS --max-time 5 http://web/").json()["name"], "web of shop");
    assert_eq!(client.sh("curl -sS --max-time 5 http://web.default/").json()["name"], "web");
    drop(client);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn domains_are_taken_from_the_clusters_dns_and_given_back() {
    let test = Test::beside_others();
    let scope = test.scope();
    let excluded = ["--dns-exclude", "svc.cluster.local", "--dns-include", "shop.svc.cluster.local"];
    scope.tp(["connect"].into_iter().chain(excluded)).run().ok();
    let client = scope.join(tp_tests::docker::Spec::client());
    let ip = kubectl::service_ip("shop", "web");
    assert_eq!(client.sh("dig +short web.shop.svc.cluster.local").ok(), ip);
    assert_eq!(client.sh("dig +short +time=3 +tries=1 web.default.svc.cluster.local").stdout, "");
    drop(client);
    scope.tp(["quit"]).run().ok();
}
