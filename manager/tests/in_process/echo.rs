//! Pings through a lane, in a network namespace of their own: who may ping, and what answers, is the namespace's affair.

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tp_manager::dial::Dialer;
use tp_manager::dns::Forwarder;
use tp_manager::policy::{Loopback, Policy};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::limits::{MAX_DATAGRAM_BYTES, MAX_ECHOES};
use tp_tunnel::error::FlowOpenError;

use crate::stage::{Stage, soon};

/// Set where the tests below run in their namespace.
const IN_NAMESPACE: &str = "TP_TEST_IN_NAMESPACE";

/// Lets root's group ping. Behind `near` lie neighbours that do not exist, and `SILENT`, which takes all and says nothing.
const PREPARE: &str = r#"
    ip link set lo up
    echo '0 0' >/proc/sys/net/ipv4/ping_group_range
    ip link add near type veth peer name far
    echo 10 >/proc/sys/net/ipv4/neigh/near/retrans_time_ms
    echo 10 >/proc/sys/net/ipv6/neigh/near/retrans_time_ms
    ip link set far up
    ip address add 10.99.0.1/24 dev near
    ip address add fd99::1/64 dev near nodad
    ip link set near up
    ip neighbour add 10.99.0.9 lladdr 02:00:00:00:00:09 dev near
    ip route add prohibit 10.98.0.0/16
    exec "$0" --exact "$@"
"#;

/// The longest data over IPv4, whose length counts its own header.
const IPV4_BYTES_MAX: usize = MAX_DATAGRAM_BYTES - 20;

const SILENT: &str = "10.99.0.9";

/// Runs `body` in a network namespace of its own: this program once more, for the one test.
#[track_caller]
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return body();
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-ec", PREPARE]).arg(program).arg(test);
    let output = command.env(IN_NAMESPACE, "1").output().expect("unshare, of util-linux, is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    let cried = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{cried}");
}

fn block_on(body: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(body);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[track_caller]
fn class(outcome: Result<Bytes, FlowOpenError>) -> ErrorClass {
    outcome.expect_err("it was answered").class()
}

#[test]
fn addresses_that_answer_return_the_data() {
    in_namespace("echo::addresses_that_answer_return_the_data", || {
        block_on(async {
            let mut stage = Stage::new();
            let client = stage.client().await;
            for (dst, longest) in [
                ("127.0.0.1", IPV4_BYTES_MAX),
                ("::1", MAX_DATAGRAM_BYTES),
                ("10.99.0.1", IPV4_BYTES_MAX),
                ("fd99::1", MAX_DATAGRAM_BYTES),
                ("::ffff:10.99.0.1", IPV4_BYTES_MAX),
            ] {
                for len in [0, 56, longest] {
                    let data = Bytes::from(vec![0xa5; len]);
                    assert_eq!(soon(client.lane.echo(ip(dst), data.clone())).await.unwrap(), data, "{dst}");
                }
            }
        });
    });
}

#[test]
fn addresses_that_do_not_exist_are_reported_as_unreachable() {
    in_namespace("echo::addresses_that_do_not_exist_are_reported_as_unreachable", || {
        block_on(async {
            let mut stage = Stage::new();
            let client = stage.client().await;
            for (dst, expected) in [
                ("10.99.0.7", ErrorClass::HostUnreachable),
                ("fd99::7", ErrorClass::HostUnreachable),
                ("10.97.0.1", ErrorClass::NetUnreachable),
                ("10.98.0.1", ErrorClass::Denied),
                ("169.254.169.254", ErrorClass::Denied),
            ] {
                assert_eq!(class(soon(client.lane.echo(ip(dst), Bytes::new())).await), expected, "{dst}");
            }
        });
    });
}

#[test]
fn silence_ends_in_time() {
    in_namespace("echo::silence_ends_in_time", || {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (_, policy) = watch::channel(Arc::new(Policy { loopback: Loopback::Dial, ..Policy::default() }));
            let dns = Arc::new(Forwarder::new(Vec::new(), Duration::from_secs(1), 1));
            let dialer = Dialer::new(policy, dns, "cluster.local".to_owned(), Duration::from_secs(5));
            let refused = dialer.echo(ip(SILENT), b"anybody?").await.unwrap_err();
            assert_eq!(refused.class, ErrorClass::TimedOut);
        });
    });
}

#[test]
fn pings_over_the_limit_are_refused() {
    in_namespace("echo::pings_over_the_limit_are_refused", || {
        block_on(async {
            const OVER: usize = 40;
            let mut stage = Stage::new();
            let client = stage.client().await;
            let mut pings = JoinSet::new();
            for _ in 0..MAX_ECHOES + OVER {
                let lane = client.lane.clone();
                pings.spawn(async move { lane.echo(ip(SILENT), Bytes::new()).await });
            }
            for _ in 0..OVER {
                let ended = soon(pings.join_next()).await.unwrap().unwrap();
                assert_eq!(class(ended), ErrorClass::Exhausted);
            }
            assert_eq!(pings.len(), MAX_ECHOES);
        });
    });
}

#[tokio::test]
async fn a_manager_that_may_not_ping_says_what_is_missing() {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
    let mut stage = Stage::new();
    let client = stage.client().await;
    let answer = soon(client.lane.echo(ip("127.0.0.1"), Bytes::new())).await;
    // "1 0", the kernel's default, is nobody.
    if range.split_whitespace().eq(["1", "0"]) {
        let error = answer.expect_err("nobody may ping");
        assert_eq!(error.class(), ErrorClass::Failed);
        assert!(error.to_string().contains("net.ipv4.ping_group_range"), "{error}");
    } else {
        assert_eq!(answer.unwrap(), Bytes::new());
    }
}
