//! IPv6 from a joined container to a dual-stack cluster: whatever works over IPv4 works over IPv6 in the same way.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::test::Test;

/// The IPv4 and the IPv6 address among those of a service or a pod.
#[track_caller]
fn both(addresses: &[IpAddr]) -> [IpAddr; 2] {
    let [v4, v6] =
        [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|is_wanted| addresses.iter().copied().find(is_wanted)).map(|found| {
            found.unwrap_or_else(|| panic!("the test cluster is dual-stack, and there is only {addresses:?}"))
        });
    [v4, v6]
}

#[track_caller]
fn service(name: &str) -> [IpAddr; 2] {
    both(&kubectl::service_ips("default", name))
}

#[track_caller]
fn pod(label: &str) -> [IpAddr; 2] {
    both(&kubectl::pod_ips("default", label))
}

#[test]
fn names_have_addresses_of_both_families_and_addresses_have_names() {
    let test = Test::beside_others();
    let connection = test.shared();
    let [v4, v6] = service("web");
    let dig = |query: &str| connection.sh(&format!("dig +short +time=3 +tries=1 {query}")).ok();
    assert_eq!(dig("A web.default.svc.cluster.local"), v4.to_string());
    assert_eq!(dig("AAAA web.default.svc.cluster.local"), v6.to_string());
    assert_eq!(dig(&format!("-x {v6}")), "web.default.svc.cluster.local.");
    let [_, pod] = pod("statefulset.kubernetes.io/pod-name=db-0");
    assert_eq!(dig("AAAA db-0.db.default.svc.cluster.local"), pod.to_string());
    assert_eq!(dig(&format!("-x {pod}")), "db-0.db.default.svc.cluster.local.");
    let both = connection.sh("getent ahosts web | cut -d' ' -f1 | sort -u").ok();
    let mut expected = [v4.to_string(), v6.to_string()];
    expected.sort();
    assert_eq!(both.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn service_of_one_family_has_no_address_of_the_other() {
    let test = Test::beside_others();
    let connection = test.shared();
    let answer = connection.sh("dig +time=3 +tries=1 AAAA redis.default.svc.cluster.local");
    answer.exits(0).says(&["status: NOERROR", "ANSWER: 0"]);
    assert_eq!(connection.sh("redis-cli -h redis ping").ok(), "PONG");
}

#[test]
fn http_reaches_services_and_pods_by_either_family() {
    let test = Test::beside_others();
    let connection = test.shared();
    let get =
        |how: &str| connection.sh(&format!("curl -sS --max-time 5 {how}")).json()["local"].as_str().map(str::to_owned);
    let ([service4, service6], [pod4, pod6]) = (service("web"), pod("app=web"));
    let (at4, at6) = (Some(format!("{pod4}:8080")), Some(format!("[{pod6}]:8080")));
    for how in ["-4 http://web/", &format!("http://{service4}/"), &format!("http://{pod4}:8080/")] {
        assert_eq!(get(how), at4, "{how}");
    }
    let literal = format!("http://[{service6}]/");
    for how in ["-6 http://web/", "-6 --http2-prior-knowledge http://web/", &literal, &format!("http://[{pod6}]:8080/")]
    {
        assert_eq!(get(how), at6, "{how}");
    }
    connection.sh(&format!("peer websocket 'ws://[{}]/websocket'", service("peer")[1])).exits(0).says(&["5 messages"]);
}

#[test]
fn clients_fall_back_to_the_family_that_answers() {
    let test = Test::beside_others();
    let ([v4, v6], [refuses4, refuses6]) = (service("web"), pod("app=echo"));
    let nobody = "fd00:10:96::dead";
    for addresses in [format!("[{nobody}],{v4}"), format!("[{refuses6}],{v4}"), format!("{refuses4},[{v6}]")] {
        let curl = format!("curl -sS --max-time 10 --resolve 'both.test:80:{addresses}' http://both.test/");
        assert_eq!(test.shared().sh(&curl).json()["name"], "web", "{addresses}");
    }
}

#[test]
fn ten_mebibytes_and_a_half_close_arrive_over_ipv6() {
    let test = Test::beside_others();
    let connection = test.shared();
    let prepared = connection.sh("head -c 10485760 /dev/urandom >/tmp/six && sha256sum </tmp/six | cut -d' ' -f1").ok();
    let received = connection.sh("nc -6 -N echo 10 </tmp/six").json();
    assert_eq!((received["bytes"].as_u64(), received["sha256"].as_str()), (Some(10_485_760), Some(prepared.as_str())));
    assert_eq!(connection.sh("nc -6 -N echo 7 </tmp/six | sha256sum | cut -d' ' -f1").ok(), prepared);
    assert_eq!(connection.sh("nc -6 echo 25 </dev/null | head -n 1").ok(), "220 echo ready");
}

#[test]
fn refused_ports_are_refused_over_ipv6() {
    const UDP: &str = r#"
        use IO::Socket::IP;
        my $s = IO::Socket::IP->new(Proto => "udp", PeerHost => $ARGV[0], PeerPort => 9997) or die $@;
        local $SIG{ALRM} = sub { print "no answer\n"; exit };
        alarm 5;
        send($s, "anybody?", 0);
        print defined recv($s, my $got, 100, 0) ? "answered\n" : "$!\n";
    "#;
    let test = Test::beside_others();
    let connection = test.shared();
    let ([_, service], [_, pod]) = (service("echo"), pod("app=echo"));
    for (host, port) in [(service, 9999), (pod, 9998)] {
        connection.sh(&format!("exec 3<>/dev/tcp/{host}/{port}")).says(&["Connection refused"]);
    }
    let said = connection.client().exec(&["perl", "-e", UDP, &pod.to_string()], Duration::from_secs(20)).ok();
    assert_eq!(said, "Connection refused");
}

#[test]
fn manager_and_node_are_not_dialled_over_ipv6() {
    let test = Test::beside_others();
    let connection = test.shared();
    let namespace = &given().manager_namespace;
    let [_, manager] = both(&kubectl::pod_ips(namespace, "app.kubernetes.io/name=tp-manager"));
    let [_, own_service] = both(&kubectl::service_ips(namespace, "tp-manager"));
    // The pod's next hop is its node.
    let route = kubectl::admin(&["exec", "deploy/redis", "--", "ip", "-6", "-json", "route", "show", "default"]).json();
    let node = route[0]["gateway"].as_str().expect("pods have a way out").to_owned();
    let (manager, own_service) = (manager.to_string(), own_service.to_string());
    for (host, port) in [(&manager, 7443), (&manager, 7480), (&own_service, 7443), (&node, 6443), (&node, 10_250)] {
        connection.sh(&format!("exec 3<>/dev/tcp/{host}/{port}")).says(&["Permission denied"]);
    }
}

#[test]
fn status_lists_the_subnets_of_both_families_and_all_are_routed() {
    let test = Test::beside_others();
    let connection = test.connect();
    let status = &connection.status()["connections"][0];
    let texts =
        |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let routes: Vec<String> = texts(&status["routes"]);
    for key in ["serviceSubnets", "podSubnets"] {
        let subnets: Vec<String> = texts(&status["cluster"][key]);
        assert!(subnets.iter().any(|subnet| subnet.contains('.')), "{key}: {subnets:?}");
        assert!(subnets.iter().any(|subnet| subnet.contains(':')), "{key}: {subnets:?}");
        assert!(subnets.iter().all(|subnet| routes.contains(subnet)), "{key}: {subnets:?}, routes: {routes:?}");
    }
}
