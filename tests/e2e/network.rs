//! TCP, UDP and HTTP from a joined container to the cluster, and to everything else.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tp_tests::docker::{Container, Network, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::test::Test;
use tp_tests::wait::until;

/// Sends 1000 bytes' worth of a question and says how the connection came to its end.
const READ_UNTIL_THE_END: &str = r#"
    use IO::Socket::INET;
    my ($target, $request) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $target, Timeout => 5) or do { print "not connected: $!\n"; exit };
    syswrite $s, "$request\n" if length $request;
    my $n = 0;
    while (1) {
        my $len = sysread $s, my $block, 65536;
        if (!defined $len) { print "$n bytes, then $!\n"; last }
        if (!$len) { print "$n bytes, then the end\n"; last }
        $n += $len;
    }
"#;

/// Runs a Perl program in a container.
#[track_caller]
fn perl(container: &Container, program: &str, args: &[&str]) -> String {
    let command = [&["perl", "-e", program], args].concat();
    container.exec(&command, Duration::from_secs(20)).ok()
}

#[test]
fn http_by_short_name_and_by_full_name() {
    let test = Test::beside_others();
    let connection = test.shared();
    for name in
        ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "web.default.svc.cluster.local."]
    {
        let report = connection.sh(&format!("curl -sS --max-time 5 http://{name}/")).json();
        assert_eq!(report["name"], "web", "http://{name}/");
    }
    let other = connection.sh("curl -sS --max-time 5 http://web.shop/").json();
    assert_eq!(other["name"], "web of shop");
}

#[test]
fn http1_and_http2_carry_bodies_and_headers_both_ways() {
    let test = Test::beside_others();
    let connection = test.shared();
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2-prior-knowledge", "HTTP/2.0")] {
        let report = connection.sh(&format!("curl -sS --max-time 5 {flag} -H 'x-test: a b' 'http://web/p?q=1'")).json();
        assert_eq!(report["version"], version);
        assert_eq!(report["headers"]["x-test"], "a b");
        assert_eq!((report["path"].as_str(), report["query"].as_str()), (Some("/p"), Some("q=1")));
        let echoed =
            connection.sh(&format!("curl -sS --max-time 5 {flag} --data-binary 'to and fro' http://web/echo")).ok();
        assert_eq!(echoed, "to and fro");
    }
}

#[test]
fn cluster_sees_the_manager_as_peer() {
    let test = Test::beside_others();
    for manager in kubectl::pod_ips(&given().manager_namespace, "app.kubernetes.io/name=tp-manager") {
        let family = if manager.is_ipv4() { "-4" } else { "-6" };
        let report = test.shared().sh(&format!("curl -sS {family} --max-time 5 http://web/")).json();
        let peer = report["peer"].as_str().and_then(|peer| peer.parse::<SocketAddr>().ok()).expect("an address");
        assert_eq!(peer.ip(), manager);
    }
}

#[test]
fn static_binary_from_scratch_sees_the_cluster_like_any_other() {
    let test = Test::beside_others();
    let connection = test.shared();
    let load = ["bench", "--mode", "requests", "--seconds", "1", "--path", "/bytes?n=10"];
    let container =
        connection.join(Spec::sample(load.into_iter().chain(["--target", "web.default.svc.cluster.local:80"])));
    let figures = container.wait(Duration::from_secs(20)).json();
    assert!(figures["requests"].as_u64() > Some(0), "{figures}");
    let container = connection.join(Spec::sample(load.into_iter().chain(["--target", "web:80"])));
    let figures = container.wait(Duration::from_secs(20)).json();
    assert!(figures["requests"].as_u64() > Some(0), "{figures}");
}

#[test]
fn ten_mebibytes_arrive_whole_in_both_directions() {
    let test = Test::beside_others();
    let connection = test.shared();
    let prepared = connection.sh("head -c 10485760 /dev/urandom >/tmp/up && sha256sum </tmp/up | cut -d' ' -f1").ok();
    let received: Value = connection.sh("nc -N echo 10 </tmp/up").json();
    assert_eq!(received["bytes"], 10_485_760);
    assert_eq!(received["sha256"], prepared.as_str());
    let echoed = connection.sh("nc -N echo 7 </tmp/up | sha256sum | cut -d' ' -f1").ok();
    assert_eq!(echoed, prepared);

    // What a pod of the cluster gets from the source is what has to arrive here.
    let download = "printf '10485760\\n' | nc stream 19 | sha256sum | cut -d' ' -f1";
    let there = kubectl::admin(&["exec", "deploy/redis", "--", "bash", "-c", download]).ok();
    assert_eq!(connection.sh(download).ok(), there);
}

#[test]
fn half_close_by_the_client_leaves_the_answer_to_come() {
    let test = Test::beside_others();
    let answer = test.shared().sh("printf abc | timeout 5 nc -N echo 10").json();
    assert_eq!(answer["bytes"], 3);
    // The example of FIPS 180-2, appendix B.1.
    assert_eq!(answer["sha256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/// A pod whose server says "bye", closes its direction, and logs what it is sent and how that ended.
struct Recorder {
    namespace: kubectl::Namespace,
    address: String,
}

impl Recorder {
    fn start(name: &str) -> Self {
        const SERVER: &str = r#"
            use IO::Socket::INET;
            $| = 1;
            my $listener = IO::Socket::INET->new(LocalPort => 7000, Listen => 5, ReuseAddr => 1) or die $!;
            print "ready\n";
            while (my $s = $listener->accept) {
                syswrite $s, "bye\n";
                shutdown $s, 1;
                my $n = 0;
                while (1) {
                    my $len = sysread $s, my $block, 65536;
                    if (!defined $len) { print "$n bytes, then $!\n"; last }
                    if (!$len) { print "$n bytes, then the end\n"; last }
                    $n += $len;
                }
            }
        "#;
        let namespace = kubectl::Namespace::create(name);
        let image = given().cluster_client_image.as_str();
        kubectl::apply(&serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "recorder", "namespace": name },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [
                { "name": "recorder", "image": image, "command": ["perl", "-e", SERVER] } ] },
        }));
        kubectl::admin(&["-n", name, "wait", "pod/recorder", "--for=condition=Ready", "--timeout=60s"]).ok();
        let recorder = Self {
            address: kubectl::admin(&["-n", name, "get", "pod", "recorder", "-o", "jsonpath={.status.podIP}"]).ok(),
            namespace,
        };
        recorder.logs("ready");
        recorder
    }

    /// Waits for a line in its log.
    #[track_caller]
    fn logs(&self, line: &str) {
        until(Duration::from_secs(10), line, || {
            let log = kubectl::admin(&["-n", self.namespace.name(), "logs", "recorder"]).ok();
            if log.lines().any(|it| it == line) { Ok(()) } else { Err(log) }
        });
    }
}

#[test]
fn half_close_by_the_server_leaves_the_client_free_to_send_and_resets_reach_it() {
    let test = Test::beside_others();
    let connection = test.shared();
    let recorder = Recorder::start(&format!("tp-e2e-{:x}-recorder", std::process::id()));
    let address = &recorder.address;
    let read = format!("exec 3<>/dev/tcp/{address}/7000; cat <&3; head -c 100000 /dev/zero >&3; exec 3>&-");
    assert_eq!(connection.sh(&read).ok(), "bye");
    recorder.logs("100000 bytes, then the end");

    let reset = r#"
        use IO::Socket::INET;
        use Socket qw(SOL_SOCKET SO_LINGER);
        my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], Timeout => 5) or die "not connected: $!";
        print scalar <$s>;
        syswrite $s, "x" x 1000;
        select undef, undef, undef, 0.5;
        setsockopt $s, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0);
        close $s;
    "#;
    assert_eq!(perl(connection.client(), reset, &[&format!("{address}:7000")]), "bye");
    recorder.logs("1000 bytes, then Connection reset by peer");
}

#[test]
fn server_that_speaks_first_is_heard() {
    let test = Test::beside_others();
    let script = "exec 3<>/dev/tcp/echo/25; read -r -t 5 line <&3; echo \"$line\"";
    assert_eq!(test.shared().sh(script).ok(), "220 echo ready");
}

/// Tries to connect from a container; returns why that fails and the seconds until it did, as seen in there.
#[track_caller]
fn fails_to_connect(container: &Container, host: &str, port: u16) -> (String, f64) {
    let script = format!(
        "start=$EPOCHREALTIME; (exec 3<>/dev/tcp/{host}/{port}) && echo connected; end=$EPOCHREALTIME; \
         echo $start $end"
    );
    let outcome = container.sh(&script).exits(0);
    let times: Vec<f64> = outcome.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [start, end] = times[..] else { panic!("two times: {outcome}") };
    assert!(!outcome.stdout.contains("connected"), "{outcome}");
    (outcome.stderr, end - start)
}

#[test]
fn refused_port_is_refused_at_once() {
    let test = Test::beside_others();
    let connection = test.shared();
    let pod = kubectl::pod_ip("default", "app=echo");
    for (host, port) in [("echo", 9999), (pod.as_str(), 9998)] {
        let (why, seconds) = fails_to_connect(connection.client(), host, port);
        assert!(why.contains("Connection refused"), "{why}");
        assert!(seconds < 1.0, "{host}:{port}: after {seconds} s");
    }
}

#[test]
fn reset_of_the_server_reaches_the_client_behind_the_data() {
    let test = Test::beside_others();
    let connection = test.shared();
    let said = perl(connection.client(), READ_UNTIL_THE_END, &["echo:99", "1000"]);
    assert_eq!(said, "1000 bytes, then Connection reset by peer");
    let said = perl(connection.client(), READ_UNTIL_THE_END, &["stream:19", "1000"]);
    assert_eq!(said, "1000 bytes, then the end");
}

#[test]
fn udp_echo_returns_datagrams_of_every_size() {
    const ECHO: &str = r#"
        use IO::Socket::IP;
        my $host = shift @ARGV;
        for my $len (@ARGV) {
            my $s = IO::Socket::IP->new(Proto => "udp", PeerHost => $host, PeerPort => 7) or die $@;
            my $sent = join "", map { chr(($len + $_ * 7) % 251) } 1 .. $len;
            my $got;
            local $SIG{ALRM} = sub { print "$len: no answer\n"; exit };
            alarm 5;
            defined send($s, $sent, 0) or print "$len: $!\n";
            defined recv($s, $got, 65536, 0) or print "$len: $!\n";
            alarm 0;
            print "$len: ", ($got eq $sent ? "same" : "other, " . length $got), "\n";
        }
    "#;
    let test = Test::beside_others();
    for address in kubectl::service_ips("default", "echo").iter().map(ToString::to_string) {
        // IPv4's length counts its header, IPv6's does not.
        let longest = if address.contains('.') { "65507" } else { "65527" };
        let sizes = ["1", "512", "1452", "1472", "1473", "9000", "30000", "65507", longest];
        let args = [&[address.as_str()], &sizes[..]].concat();
        let said = perl(test.shared().client(), ECHO, &args);
        assert_eq!(said.lines().collect::<Vec<_>>(), sizes.map(|size| format!("{size}: same")), "{address}");
    }
}

/// Pings an address from a container by the kernel's ICMP sockets, as `ping` does; one line for each length of data.
#[track_caller]
fn ping(container: &Container, address: &str, lengths: &[&str]) -> String {
    const PING: &str = r#"
        use Socket;
        my ($address, @lengths) = @ARGV;
        for my $len (@lengths) {
            my $data = join "", map { chr(($len + $_ * 7) % 251) } 1 .. $len;
            socket my $s, PF_INET, SOCK_DGRAM, 1 or die "socket: $!";
            setsockopt $s, 0, 11, pack "i", 1 or die "IP_RECVERR: $!";
            connect $s, pack_sockaddr_in(0, inet_aton($address)) or die "connect: $!";
            defined send $s, pack("CCnnna*", 8, 0, 0, 0, 1, $data), 0 or die "send: $!";
            local $SIG{ALRM} = sub { print "$len: silence\n"; exit };
            alarm 12;
            if (defined recv $s, my $got, 65535, 0) {
                print "$len: ", (substr($got, 8) eq $data ? "same" : "other, " . length $got), "\n";
            } else {
                print "$len: $!\n";
            }
            alarm 0;
        }
    "#;
    perl(container, PING, &[&[address], lengths].concat())
}

#[test]
fn pods_answer_pings_and_addresses_without_a_pod_do_not() {
    let test = Test::beside_others();
    let connection = test.shared();
    let client = connection.client();
    let pod = kubectl::pod_ip("default", "app=web");
    let lengths = ["0", "56", "1472", "9000", "65507"];
    let said = ping(client, &pod, &lengths);
    assert_eq!(said.lines().collect::<Vec<_>>(), lengths.map(|len| format!("{len}: same")));
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    assert_eq!(ping(client, &manager, &["56"]), "56: same");

    let pods = kubectl::admin(&["get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}"]).ok();
    let subnet = pod.rsplit_once('.').expect("an IPv4 address").0;
    let unused = (2..255).rev().map(|host| format!("{subnet}.{host}")).find(|ip| !pods.split(' ').any(|pod| pod == ip));
    let said = ping(client, &unused.expect("the subnet is not full"), &["56"]);
    // Whether somebody says so is the network plugin's affair.
    assert!(["56: silence", "56: No route to host"].contains(&&*said), "{said}");
    assert_eq!(ping(client, "198.18.77.77", &["56"]), "56: No route to host", "the TUN's own range");
}

#[test]
fn pods_are_reached_by_address() {
    let test = Test::beside_others();
    let pod = kubectl::pod_ip("default", "app=web");
    let report = test.shared().sh(&format!("curl -sS --max-time 5 http://{pod}:8080/")).json();
    assert_eq!(report["local"], format!("{pod}:8080"));
}

#[test]
fn api_server_answers_by_its_service_name() {
    let test = Test::beside_others();
    let version = test.shared().sh("curl -sSk --max-time 5 https://kubernetes.default.svc/version").json();
    assert!(version["gitVersion"].is_string() || version["code"].is_number(), "{version}");
}

#[test]
fn manager_does_not_dial_its_own_ports() {
    let test = Test::beside_others();
    let connection = test.shared();
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    for port in [7400, 7443, 7480] {
        let (why, seconds) = fails_to_connect(connection.client(), &manager, port);
        assert!(seconds < 1.0, "{port}: {why} after {seconds} s");
    }
}

#[test]
fn many_connections_at_once_are_all_served() {
    let test = Test::beside_others();
    let load = ["bench", "--mode", "connects", "--connections", "64", "--seconds", "2", "--target", "web:80"];
    let figures = test.shared().join(Spec::sample(load)).wait(Duration::from_secs(30)).json();
    assert!(figures["requests"].as_u64() >= Some(64), "each of them: {figures}");
}

#[test]
fn redis_and_postgresql_talk_to_their_own_clients() {
    let test = Test::beside_others();
    let connection = test.shared();
    let script = "redis-cli -h redis set tp-e2e:key value >/dev/null && redis-cli -h redis get tp-e2e:key";
    assert_eq!(connection.sh(script).ok(), "value");
    let script = "PGPASSWORD=app psql -h postgres -U app app -Atc 'SELECT greeting FROM greetings'";
    assert_eq!(connection.sh(script).ok(), "hello from PostgreSQL");
    // Larger than any buffer on the way.
    let script = "PGPASSWORD=app psql -h postgres -U app app -Atc \"SELECT repeat('x', 3000000)\" | wc -c";
    assert_eq!(connection.sh(script).ok(), "3000001");
}

#[test]
fn addresses_outside_the_cluster_stay_reachable() {
    let test = Test::beside_others();
    let neighbour = Spec::sample(["serve", "--name", "neighbour"]).start();
    let ip = neighbour.bridge_ip();
    let report =
        test.shared().sh(&format!("curl -sS --retry 3 --retry-connrefused --max-time 5 http://{ip}:8080/")).json();
    assert_eq!(report["name"], "neighbour");
}

#[test]
fn names_outside_the_cluster_keep_working_beside_those_of_it() {
    let test = Test::beside_others();
    // Made before the connection that joins it, so that it goes after that, however the test ends.
    let network = Network::create(&format!("tp-e2e-{:x}-beside", std::process::id()));
    let scope = test.scope();
    let neighbour = Spec::sample(["serve", "--name", "neighbour"]);
    let neighbour = neighbour.network(network.name()).alias("www.example.test").alias("beside").start();
    scope.tp(["connect"]).env("TP_NETWORKS", network.name()).run().ok();
    let client = scope.join(Spec::client());
    let get = |url: &str| client.sh(&format!("curl -sS --retry 3 --retry-connrefused --max-time 5 {url}")).json();
    assert_eq!(get("http://www.example.test:8080/")["name"], "neighbour");
    assert_eq!(get("http://beside:8080/")["name"], "neighbour");
    assert_eq!(get("http://web.default/")["name"], "web");
    drop((client, neighbour));
    scope.tp(["quit"]).run().ok();
}

#[test]
fn subnets_outside_the_cluster_are_reached_through_it_and_its_own_are_not_when_told_so() {
    let test = Test::beside_others();
    let neighbour = Spec::sample(["serve", "--name", "neighbour"]).start();
    let address = neighbour.bridge_ip();
    let web = kubectl::service_ip("default", "web");
    let scope = test.scope();
    scope.tp(["connect", "--also-proxy", &address, "--never-proxy", &web]).run().ok();
    let client = scope.join(Spec::client());
    let report = client.sh(&format!("curl -sS --max-time 10 http://{address}:8080/")).json();
    assert_eq!(report["name"], "neighbour");
    let peer = report["peer"].as_str().and_then(|peer| peer.parse::<SocketAddr>().ok()).expect("an address");
    let own = client.sh("hostname -i").ok();
    assert!(!own.split_whitespace().any(|ip| ip == peer.ip().to_string()), "the cluster made the connection: {report}");
    let never = client.sh(&format!("ip route get {web}")).ok();
    assert!(!never.contains("tp0"), "{never}");
    scope.tp(["status"]).run().exits(0).says(&["Also:", &address, "Never:", &web]);
    drop(client);
    scope.tp(["quit"]).run().ok();
}
