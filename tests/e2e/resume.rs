//! Tunnels whose way to the API server is cut, frozen or full: flows survive, and small ones do not wait.

use std::time::Duration;

use tp_tests::docker::{self, Spec};
use tp_tests::test::Test;
use tp_tests::wait::until;

/// Sends 40 MiB to the echo server in random pieces while it reads them back; fails at the first wrong byte.
const ECHO: &str = r#"
    use IO::Socket::INET; use IO::Select; use Digest::SHA;
    my ($address, $total) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $address, Timeout => 10) or die "cannot connect: $!";
    $s->blocking(0);
    my ($sent, $received) = (Digest::SHA->new(256), Digest::SHA->new(256));
    my ($out, $in, $pending) = (0, 0, "");
    my $reads = IO::Select->new($s);
    while ($in < $total) {
        if ($out < $total && !length $pending) {
            my $len = 1 + int rand 100_000;
            $len = $total - $out if $len > $total - $out;
            $pending = pack("L*", map { int rand 4294967295 } 1 .. $len / 4 + 1);
            $pending = substr $pending, 0, $len;
            $sent->add($pending);
            $out += $len;
        }
        my ($readable, $writable) = IO::Select->select($reads, length $pending ? $reads : undef, undef, 30);
        $readable or die "nothing moved for 30 s after $out bytes there and $in back";
        if (@$writable) {
            my $len = syswrite $s, $pending;
            defined $len or $!{EAGAIN} or die "write: $!";
            substr($pending, 0, $len // 0) = "";
        }
        if (@$readable) {
            my $len = sysread $s, my $data, 262144;
            defined $len or $!{EAGAIN} or die "read: $!";
            die "the echo ended after $in bytes" if defined $len && !$len;
            $received->add($data) if $len;
            $in += $len // 0;
        }
    }
    print $sent->hexdigest eq $received->hexdigest ? "whole\n" : "damaged\n";
"#;

/// How long a tunnel may take to work again once its way is back.
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn flows_survive_the_loss_of_the_byte_stream_at_any_moment() {
    const CUTS: usize = 8;
    let test = Test::beside_others();
    let scope = test.scope();
    let relay = scope.connect_through_relay(&[]);
    let client = scope.join(Spec::client());
    let total = (40 << 20).to_string();
    let echo = ["perl", "-e", ECHO, "echo:7", &total];
    std::thread::scope(|threads| {
        let flow = threads.spawn(|| client.exec(&echo, Duration::from_secs(100)));
        let mut seen = 0;
        for _ in 0..CUTS {
            docker::kill(relay.id(), "SIGUSR1");
            // One answer gives both: a loss between two answers would look like a tunnel that is back from it.
            (seen, _) = until(BACK_WITHIN, "the tunnel to be back", || {
                let status = scope.status();
                let connection = &status["connections"][0];
                let reconnects = connection["traffic"]["reconnects"].as_u64().expect("the status counts them");
                let is_back = connection["state"] == "connected" && reconnects > seen;
                if is_back { Ok(reconnects) } else { Err(status.to_string()) }
            });
        }
        let outcome = flow.join().expect("the flow is not at fault");
        assert_eq!(outcome.exits(0).stdout, "whole\n");
    });
    // What is opened while there is no way waits for it.
    docker::kill(relay.id(), "SIGUSR1");
    client.sh("curl -sS --max-time 10 http://web/").ok();
    drop(client);
    scope.tp(["quit"]).run().ok();
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn frozen_way_to_the_api_server_is_waited_for() {
    const FROZEN: Duration = Duration::from_secs(7);
    let test = Test::beside_others();
    let scope = test.scope();
    let relay = scope.connect_through_relay(&[]);
    let client = scope.join(Spec::client());
    std::thread::scope(|threads| {
        const SESSION: &str = "exec 3<>/dev/tcp/echo/7; for n in 1 2 3 4 5 6 7 8 9; do echo $n >&3; read -r -t 20 line <&3; \
                               echo $line; sleep 1; done";
        let flow = threads.spawn(|| client.exec(&["bash", "-c", SESSION], Duration::from_secs(60)));
        docker::pause(relay.id());
        #[expect(clippy::disallowed_methods, reason = "the time that passes is what this is about")]
        std::thread::sleep(FROZEN);
        docker::resume(relay.id());
        client.sh("curl -sS --max-time 10 http://web/").within(BACK_WITHIN).ok();
        assert_eq!(flow.join().expect("the flow is not at fault").exits(0).stdout, "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    });
    drop(client);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn flows_that_move_much_go_on_on_lanes_of_their_own() {
    let test = Test::beside_others();
    let connection = test.connect();
    let client = connection.client();
    let lanes = || connection.status()["connections"][0]["traffic"]["lanes"].as_u64().expect("the status counts them");
    assert_eq!(lanes(), 1);
    // The source sends until it is left.
    client.sh("for n in 1 2; do (echo | timeout 60 nc stream 19 >/dev/null) & done").ok();
    until(Duration::from_secs(10), "both downloads to have a lane", || {
        let open = lanes();
        if open == 3 { Ok(()) } else { Err(format!("{open} lanes")) }
    });
    client.sh("curl -sS --max-time 5 http://web/").ok();
    client.sh("pkill -x nc").ok();
    until(Duration::from_secs(10), "the downloads to be over", || {
        let status = connection.status();
        if status["connections"][0]["traffic"]["tcpFlows"] == 0 { Ok(()) } else { Err(status.to_string()) }
    });
    drop(client);
    connection.tp(["quit"]).run().ok();
}
