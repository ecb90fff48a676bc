//! Programs that people use, in joined containers, with their servers in the cluster.

use std::time::Duration;

use serde_json::json;
use tp_tests::docker::{Container, Spec};
use tp_tests::kubectl;
use tp_tests::test::Test;
use tp_tests::wait::until;

/// Runs scripts, and demands of each that it succeeds and says something.
#[track_caller]
fn all_say(container: &Container, scripts: &[(&str, &str)]) {
    for (script, words) in scripts {
        container.sh(script).exits(0).says(&[words]);
    }
}

#[test]
fn curl_speaks_every_version_of_http() {
    let test = Test::beside_others();
    let connection = test.shared();
    connection.sh("head -c 3000000 /dev/urandom >/tmp/body").ok();
    for (options, url, version) in [
        ("--http1.1", "http://peer", "1.1"),
        ("--http2", "http://peer", "2"), // by an upgrade
        ("--http2-prior-knowledge", "http://peer", "2"),
        ("--http1.1 --insecure", "https://peer", "1.1"),
        ("--http2 --insecure", "https://peer", "2"),
    ] {
        let curl = format!("curl -sS --max-time 10 {options}");
        let said = connection.sh(&format!("{curl} -o /dev/null -w '%{{http_version}}' {url}/")).ok();
        assert_eq!(said, version, "{options}");
        let both_ways = format!("{curl} --data-binary @/tmp/body {url}/echo | cmp - /tmp/body && echo same");
        assert_eq!(connection.sh(&both_ways).ok(), "same", "{options}");
    }
}

#[test]
fn go_speaks_http_websocket_and_grpc() {
    let test = Test::beside_others();
    let programs = [
        ("peer get http://peer/", "HTTP/1.1 HTTP/1.1"),
        ("peer get https://peer.default.svc.cluster.local/", "HTTP/2.0 HTTP/2.0"),
        ("peer get http://web.shop/", "\"web of shop\""),
        ("peer websocket ws://peer/websocket", "5 messages"),
        ("peer grpc peer:50051", "this was asked for"),
    ];
    all_say(test.shared().client(), &programs);
}

#[test]
fn java_and_node_fetch_by_every_way_they_have() {
    const NODE: &str = r#"node -e '
        const { lookup, resolve4 } = require("dns").promises;
        const requests = ["http://peer/", "http://web.shop/status/200"].map(url => fetch(url).then(it => it.text()));
        const name = "web.default.svc.cluster.local";
        Promise.all([...requests, lookup("web", 4), resolve4(name)])
            .then(([peer, shop, found, [address]]) => console.log(peer + shop + (found.address == address)))'"#;
    let test = Test::beside_others();
    let connection = test.shared();
    let client = connection.join(Spec::runtimes());
    let programs = [
        (
            "java -cp /opt/client Client http://peer/ http://web.shop/status/200",
            "HTTP_2 HTTP/1.1\nHTTP/1.1\nHTTP_1_1 OK\nOK\n",
        ),
        (NODE, "HTTP/1.1\nOK\ntrue\n"),
    ];
    all_say(&client, &programs);
}

#[test]
fn databases_talk_to_their_own_clients() {
    const POSTGRES: &str = "export PGHOST=postgres PGUSER=app PGPASSWORD=app PGDATABASE=app;";
    let test = Test::beside_others();
    let programs = [
        ("redis-benchmark -h redis -n 2000 -c 20 -q -t set,get", "GET: "),
        ("redis-benchmark -h redis -n 5000 -c 4 -P 32 -q -t incr,lrange_100", "LRANGE_100 (first 100 elements): "),
        (&format!("{POSTGRES} pgbench --initialize --quiet --unlogged-tables"), "done in"),
        (&format!("{POSTGRES} pgbench --client 4 --transactions 25 --protocol prepared"), "processed: 100/100"),
        ("mariadb -h mariadb -u app -papp app -Ne \"SELECT REPEAT('x', 3000000)\" | wc -c", "3000001"),
        (
            "mariadb -h mariadb -u app -papp app -Ne 'CREATE OR REPLACE TABLE t (n INT); INSERT INTO t VALUES (6), (7); \
             SELECT SUM(n) FROM t'",
            "13",
        ),
    ];
    all_say(test.shared().client(), &programs);
}

#[test]
fn ssh_runs_commands_and_copies_files() {
    const OPTIONS: &str = "-i /home/app/.ssh/id_ed25519 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
    let test = Test::beside_others();
    let programs = [
        ("head -c 8000000 /dev/urandom >/tmp/file && echo made", "made"),
        (&format!("ssh {OPTIONS} app@ssh 'cat >/tmp/file' </tmp/file; echo $?"), "0"),
        (&format!("ssh {OPTIONS} app@ssh 'cat /tmp/file' | cmp - /tmp/file && echo same"), "same"),
        (&format!("sftp -q {OPTIONS} app@ssh:/tmp/file /tmp/copy && cmp /tmp/file /tmp/copy && echo same"), "same"),
        // A command's exit code, and its output before it.
        (&format!("ssh {OPTIONS} app@ssh 'echo out; exit 3'; echo $?"), "out\n3"),
    ];
    all_say(test.shared().client(), &programs);
}

#[test]
fn iperf3_measures_both_protocols_in_both_directions() {
    let test = Test::beside_others();
    let connection = test.shared();
    for options in ["-n 20M", "-n 20M --reverse", "-n 20M --parallel 4"] {
        let report = connection.sh(&format!("iperf3 --client iperf3 --json {options}")).json();
        let received = report["end"]["sum_received"]["bytes"].as_u64();
        // The server stops counting when it hears that all was sent, whatever is still on the way.
        assert!(received > Some(1 << 20), "{options}: {report}");
    }
    for options in ["-n 500K", "-n 500K --reverse"] {
        let report = connection.sh(&format!("iperf3 --client iperf3 --json --udp -b 10M -l 1200 {options}")).json();
        let end = &report["end"]["sum"];
        let [packets, lost] = ["packets", "lost_packets"].map(|key| end[key].as_u64().expect("a number"));
        // A busy machine loses some; a broken path loses all.
        assert!(packets > lost + 100, "{options}: {end}");
    }
}

#[test]
fn dig_asks_in_every_way() {
    let test = Test::beside_others();
    let connection = test.shared();
    let address = kubectl::service_ip("default", "web");
    for options in ["+notcp", "+noedns", "+noedns +nocookie", "+bufsize=512", "+bufsize=4096", "+tcp", "+dnssec"] {
        let said = connection.sh(&format!("dig +short {options} +time=3 +tries=1 WEB.default.svc.cluster.local")).ok();
        assert_eq!(said, address, "{options}");
    }
    let twice = "dig +short +tcp +keepopen web.default.svc.cluster.local web.default.svc.cluster.local";
    assert_eq!(connection.sh(twice).ok(), format!("{address}\n{address}"));
}

#[test]
fn answer_that_no_datagram_holds_comes_over_tcp() {
    const ADDRESSES: usize = 100;
    let test = Test::beside_others();
    let connection = test.shared();
    let namespace = kubectl::Namespace::create(&format!("tp-e2e-{:x}-many", std::process::id()));
    let metadata = |labels| json!({ "name": "many", "namespace": namespace.name(), "labels": labels });
    let ports = json!([{ "name": "http", "port": 80 }]);
    let endpoints: Vec<_> = (1..=ADDRESSES)
        .map(|n| json!({ "addresses": [format!("10.244.200.{n}")], "conditions": { "ready": true } }))
        .collect();
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": metadata(json!({})), "spec": { "clusterIP": "None", "ports": ports } },
        { "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
          "metadata": metadata(json!({ "kubernetes.io/service-name": "many" })), "endpoints": endpoints },
    ] }));
    let name = format!("many.{}.svc.cluster.local", namespace.name());
    let (dig, whole) = (format!("dig +time=3 +tries=1 {name}"), format!("ANSWER: {ADDRESSES},"));
    until(Duration::from_secs(20), "the cluster's DNS to know the name", || {
        let said = connection.sh(&format!("{dig} +tcp")).stdout;
        if said.contains(&whole) { Ok(()) } else { Err(said) }
    });
    connection.sh(&format!("{dig} +noedns +ignore")).exits(0).says(&[" tc "]);
    connection.sh(&format!("{dig} +noedns")).exits(0).says(&[&whole, "retrying in TCP mode"]);
    connection.sh(&format!("{dig} +bufsize=4096 +ignore")).exits(0).says(&[&whole]);
    // The C library's own resolver does as dig does.
    let found = connection.sh(&format!("getent ahostsv4 {name} | cut -d' ' -f1 | sort -u | wc -l")).ok();
    assert_eq!(found, ADDRESSES.to_string());
}
