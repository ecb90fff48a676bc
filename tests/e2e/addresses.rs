//! Addresses of the cluster that containers see as others, and names that stand for others.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{Container, Network, Spec};
use tp_tests::kubectl::{self, Applied};
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

/// Gets a URL in a container, as JSON. A sample that has just been started may not listen yet.
#[track_caller]
fn get(client: &Container, url: &str) -> Value {
    client.sh(&format!("curl -sS --retry 3 --retry-connrefused --max-time 10 http://{url}")).json()
}

/// The only virtual subnet for a real one, in a status.
#[track_caller]
fn seen_as<'s>(status: &'s Value, subnet: &str) -> &'s Value {
    let found = status["connections"][0]["virtual"].as_array().into_iter().flatten().find(|it| it["subnet"] == subnet);
    found.unwrap_or_else(|| panic!("{subnet} is not virtual: {status}"))
}

/// The subnet of the cluster that an address is of.
#[track_caller]
fn subnet_of(scope: &Scope<'_>, ip: &str) -> String {
    let cluster = scope.status()["connections"][0]["cluster"].clone();
    let subnets = ["serviceSubnets", "podSubnets"].into_iter().flat_map(|key| cluster[key].as_array().cloned());
    let subnets = subnets.flatten().map(|net| net.as_str().expect("a subnet is text").to_owned());
    let ip: std::net::IpAddr = ip.parse().expect("an address");
    let mut found = subnets.filter(|net| net.parse::<ipnet::IpNet>().expect("a subnet").contains(&ip));
    found.next_back().unwrap_or_else(|| panic!("{ip} is of no subnet of {cluster}"))
}

#[test]
fn address_outside_that_the_clusters_dns_names_is_reached_without_an_option() {
    let test = Test::beside_others();
    let outside = Spec::sample(["serve", "--name", "outside"]).start();
    let address = outside.bridge_ip();
    let namespace = kubectl::Namespace::create(&format!("tp-e2e-{:x}-outside", std::process::id()));
    let name = namespace.name();
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "outside", "namespace": name },
          "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 8080 }] } },
        { "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
          "metadata": { "name": "outside", "namespace": name, "labels": { "kubernetes.io/service-name": "outside" } },
          "endpoints": [{ "addresses": [address] }], "ports": [{ "name": "http", "port": 8080 }] },
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "alias", "namespace": name },
          "spec": { "type": "ExternalName", "externalName": format!("outside.{name}.svc.cluster.local") } },
    ] }));
    let connection = test.connect();
    let client = connection.client();
    // CoreDNS hears of the Service a moment later than kubectl.
    let ip = until(Duration::from_secs(20), "the name to resolve", || {
        let answer = client.sh(&format!("dig +short alias.{name}.svc.cluster.local")).stdout;
        let last = answer.lines().last().unwrap_or_default().to_owned();
        if last.starts_with("198.18.") { Ok(last) } else { Err(answer) }
    });
    let ip = ip.0;
    for host in [format!("alias.{name}"), format!("outside.{name}"), ip.clone()] {
        let report = get(&client, &format!("{host}:8080/"));
        assert_eq!(report["name"], "outside", "{host}");
        let peer = report["peer"].as_str().and_then(|peer| peer.parse::<SocketAddr>().ok()).expect("an address");
        let own = client.sh("hostname -i").ok();
        assert!(!own.split_whitespace().any(|own| own == peer.ip().to_string()), "the cluster connects: {report}");
    }
    let reverse = client.sh(&format!("dig +short -x {ip}")).ok();
    let pod_name = address.replace('.', "-");
    assert_eq!(reverse, format!("{pod_name}.outside.{name}.svc.cluster.local."));
    assert_eq!(connection.status()["connections"][0]["dns"]["virtualAddresses"], 1);
    let unused = client.sh("(exec 3<>/dev/tcp/198.18.200.200/80) 2>&1").stdout;
    assert!(unused.contains("Connection refused"), "{unused}");
}

#[test]
fn alone_subnet_that_comes_up_while_connected_is_routed_by_the_next_connect() {
    const LIMIT: Duration = Duration::from_secs(20);
    // Services of other tests would get addresses of the new subnet.
    let test = Test::alone();
    let connection = test.connect();
    let client = connection.client();
    let _subnet = Applied::within(
        LIMIT,
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "tp-e2e-more" },
                "spec": { "cidrs": ["10.99.77.0/24"] } }),
    );
    let _service = Applied::within(
        LIMIT,
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web-more", "namespace": "shop" },
                "spec": { "clusterIP": "10.99.77.7", "selector": { "app": "web" },
                          "ports": [{ "port": 80, "targetPort": 8080 }] } }),
    );
    until(LIMIT, "the status to tell of the subnet", || {
        let text = connection.tp(["status"]).run().ok();
        if text.contains("new subnets are not routed (10.99.77.0/24)") { Ok(()) } else { Err(text) }
    });
    let outcome = connection.tp(["connect"]).run();
    assert!(outcome.stderr.contains("Routed as well, for they are new in the cluster: 10.99.77.0/24."), "{outcome:?}");
    assert_eq!(get(&client, "10.99.77.7/")["name"], "web of shop");
    let status = connection.status();
    let routes = status["connections"][0]["routes"].as_array().expect("a list");
    assert!(routes.iter().any(|route| route == "10.99.77.0/24"), "{status}");
    let text = connection.tp(["status"]).run().ok();
    assert!(!text.contains("not routed"), "{text}");
    let again = connection.tp(["connect"]).run();
    assert!(again.stderr.contains("Already connected") && !again.stderr.contains("Routed"), "{again:?}");
}

#[test]
fn mapped_names_stand_for_others_and_for_addresses() {
    let test = Test::beside_others();
    let scope = test.scope();
    let mappings = "db.corp.example=web.shop.svc.cluster.local,here.example=192.0.2.7";
    scope.tp(["connect", "--dns-mapping", mappings]).run().ok();
    let client = scope.join(Spec::client());
    assert_eq!(get(&client, "db.corp.example/")["name"], "web of shop");
    let ip = kubectl::service_ip("shop", "web");
    let answer = client.sh("dig +short DB.corp.example").ok();
    assert_eq!(answer.lines().collect::<Vec<_>>(), ["web.shop.svc.cluster.local.", &ip]);
    assert_eq!(client.sh("getent ahostsv4 here.example | head -1 | cut -d' ' -f1").ok(), "192.0.2.7");
    scope.tp(["status"]).run().exits(0).says(&["Mapped:", "db.corp.example=web.shop.svc.cluster.local"]);
    drop(client);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn pods_seen_as_a_virtual_subnet_are_reached_by_name() {
    let test = Test::beside_others();
    let scope = test.scope();
    let pod = kubectl::admin(&["get", "pod", "db-0", "-o", "jsonpath={.status.podIP}"]).ok();
    scope.tp(["connect", "--vnat", "pods"]).run().ok();
    let subnet = subnet_of(&scope, &pod);
    let status = scope.status();
    let mapped = seen_as(&status, &subnet);
    assert_eq!(mapped["reason"], "asked for");
    let seen: ipnet::IpNet = mapped["seenAs"].as_str().expect("a subnet").parse().expect("a subnet");
    let client = scope.join(Spec::client());
    let ip = client.sh("dig +short +search db-0.db").ok();
    assert!(seen.contains(&ip.parse::<std::net::IpAddr>().expect("an address")), "{ip} is not of {seen}");
    // The name has an IPv6 address as well where the cluster does, and that one is preferred.
    let own = kubectl::pod_ips("default", "statefulset.kubernetes.io/pod-name=db-0");
    let report = get(&client, "db-0.db:8080/");
    let local: std::net::SocketAddr = report["local"].as_str().and_then(|it| it.parse().ok()).expect("an address");
    assert_eq!(report["name"], "db-0");
    assert!(own.contains(&local.ip()), "{report}");
    let report = get(&client, &format!("{ip}:8080/"));
    assert_eq!((&report["name"], &report["local"]), (&json!("db-0"), &json!(format!("{pod}:8080"))));
    assert_eq!(client.sh(&format!("dig +short -x {ip}")).ok(), "db-0.db.default.svc.cluster.local.");
    assert_eq!(get(&client, "web/")["name"], "web", "services are what they were");
    let real = client.sh(&format!("ip route get {pod}")).ok();
    assert!(!real.contains("tp0"), "{real}");
    drop(client);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn alone_overlap_with_a_docker_network_leaves_both_sides_reachable() {
    // The machine has a route to the network, so that all connections made meanwhile see pods as something else.
    let test = Test::alone();
    let scope = test.scope();
    let pod = kubectl::admin(&["get", "pod", "db-0", "-o", "jsonpath={.status.podIP}"]).ok();
    scope.tp(["connect"]).run().ok();
    let subnet = subnet_of(&scope, &pod);
    scope.tp(["quit"]).run().ok();
    let pods: ipnet::Ipv4Net = subnet.parse().expect("a subnet");
    let part =
        pods.subnets(28).ok().and_then(|parts| parts.last()).expect("pods have more than 16 addresses").to_string();
    let network = Network::with_subnet(&format!("tp-e2e-{:x}-overlap", std::process::id()), &part);
    let neighbour = Spec::sample(["serve", "--name", "neighbour"]).network(network.name()).alias("beside").start();

    let scope = test.scope();
    let said = scope.tp(["connect", "--network", network.name()]).run().exits(0).stderr.clone();
    assert!(said.contains(&format!("{subnet} is seen as 240.")), "{said}");
    let status = scope.status();
    let reason = format!("overlaps with {part}, a network of the container");
    assert_eq!(seen_as(&status, &subnet)["reason"], reason.as_str());
    let client = scope.join(Spec::client());
    assert_eq!(get(&client, "db-0.db:8080/")["name"], "db-0");
    assert_eq!(get(&client, "beside:8080/")["name"], "neighbour");
    let address = client.sh("dig +short beside").ok();
    assert!(
        part.parse::<ipnet::Ipv4Net>()
            .expect("a subnet")
            .contains(&address.parse::<std::net::Ipv4Addr>().expect("an address"))
    );
    drop(client);
    scope.tp(["quit"]).run().ok();

    // Another connection, elsewhere: what is left is the machine's route.
    let scope = test.scope();
    scope.tp(["connect"]).run().ok();
    let status = scope.status();
    let reason = format!("overlaps with {part}, to which this machine has a route");
    assert_eq!(seen_as(&status, &subnet)["reason"], reason.as_str());
    scope.tp(["quit"]).run().ok();
    let scope = test.scope();
    scope.tp(["connect", "--vnat", "none"]).run().ok();
    assert_eq!(scope.status()["connections"][0]["virtual"], json!([]));
    scope.tp(["quit"]).run().ok();
    drop(neighbour);
}
