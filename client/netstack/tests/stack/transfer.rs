//! Bytes both ways: intact, paced by windows, through loss.

use std::{task::Poll, time::Duration};

use bytes::Bytes;
use smoltcp::{iface::SocketHandle, socket::tcp::State};
use tp_netstack::FlowId;

use crate::{
    net::{MODES, Mode, Net, pattern},
    opening::{client, client6, server, server6},
};

/// One direction of a transfer, fed bit by bit.
struct Upload {
    left: Bytes,
    received: Vec<u8>,
}

/// Moves `up` and `down` at the same time until both have arrived, or until `deadline` of simulated time.
fn transfer(net: &mut Net, handle: SocketHandle, flow: FlowId, up: &Bytes, down: &Bytes, deadline: Duration) {
    let end = net.now() + deadline;
    let mut upload = Upload { left: up.clone(), received: Vec::new() };
    let mut download = Upload { left: down.clone(), received: Vec::new() };
    while upload.received.len() < up.len() || download.received.len() < down.len() {
        let socket = net.kernel.socket(handle);
        if socket.can_send() {
            let taken = socket.send_slice(&upload.left).expect("the socket is open");
            upload.left = upload.left.slice(taken..);
        }
        if socket.can_recv() {
            socket
                .recv(|bytes| {
                    download.received.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .expect("there is something to receive");
        }
        let (bytes, _) = net.recv_all(flow);
        upload.received.extend_from_slice(&bytes);
        let _ = net.send(flow, &mut download.left);
        let before = net.stats().packets_in + net.stats().packets_out;
        net.run();
        let is_done = upload.received.len() == up.len() && download.received.len() == down.len();
        if !is_done && net.stats().packets_in + net.stats().packets_out == before {
            assert!(net.sleep_until_timer(Duration::from_secs(120)), "the transfer hangs at {:?}", net.stats());
        }
        assert!(net.now() < end, "the transfer takes too long: {:?}", net.stats());
    }
    assert!(upload.received == *up, "the upload was damaged");
    assert!(download.received == *down, "the download was damaged");
}

#[test]
fn a_mebibyte_arrives_intact_both_ways() {
    for mode in MODES {
        for (src, dst) in [(client(4000), server()), (client6(4000), server6())] {
            let mut net = Net::new(mode);
            let (handle, flow) = net.connect(src, dst);
            let (up, down) = (pattern(1 << 20, 1), pattern(1 << 20, 2));
            transfer(&mut net, handle, flow, &up, &down, Duration::from_secs(1));
            let stats = net.stats();
            assert_eq!((stats.malformed, stats.checksum_errors, stats.replies_dropped), (0, 0, 0));
        }
    }
}

#[test]
fn super_packets_leave_whole() {
    let mut net = Net::new(Mode::OffloadSmall);
    let (handle, flow) = net.connect(client(4000), server());
    let before = net.stats().packets_out;
    transfer(&mut net, handle, flow, &Bytes::new(), &pattern(8 << 20, 3), Duration::from_secs(1));
    let packets = net.stats().packets_out - before;
    assert!(packets < 400, "{packets} packets for 8 MiB: the window of 256 KiB allows 64 KiB each");
}

#[test]
fn bytes_survive_loss() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        net.loss = 3;
        let (up, down) = (pattern(1 << 20, 1), pattern(1 << 20, 2));
        transfer(&mut net, handle, flow, &up, &down, Duration::from_secs(3_600));
    }
}

#[test]
fn a_device_that_refuses_packets_loses_nothing() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        net.refusals = 30;
        let (up, down) = (pattern(4 << 20, 1), pattern(4 << 20, 2));
        // Without a retransmission: no time passes.
        transfer(&mut net, handle, flow, &up, &down, Duration::from_millis(1));
        assert!(net.stats().transmit_blocked > 3);
    }
}

#[test]
fn a_reader_that_stops_closes_the_window_and_opens_it_again() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        let up = pattern(3 << 20, 4);
        let mut left = up.clone();
        // Nobody reads: the stack's ring and the kernel's fill up, and it stops.
        for _ in 0..100 {
            let taken = net.kernel.socket(handle).send_slice(&left).expect("the socket is open");
            left = left.slice(taken..);
            net.sleep(Duration::from_secs(10));
        }
        let accepted = up.len() - left.len();
        assert!(accepted < 1 << 20, "{accepted} bytes were taken");
        let packets = net.stats().packets_in;
        net.sleep(Duration::from_secs(3_600));
        assert!(net.stats().packets_in - packets < 200, "a closed window is probed, not hammered");

        let (mut received, _) = net.recv_all(flow);
        while received.len() < up.len() {
            net.run();
            let taken = net.kernel.socket(handle).send_slice(&left).expect("the socket is open");
            left = left.slice(taken..);
            let (more, _) = net.recv_all(flow);
            received.extend_from_slice(&more);
        }
        assert!(received == up);
    }
}

#[test]
fn a_container_that_stops_reading_is_waited_for() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        let down = pattern(2 << 20, 5);
        let mut left = down.clone();
        assert_eq!(net.send(flow, &mut left), Poll::Pending);
        net.sleep(Duration::from_secs(3_600));
        assert_eq!(net.send(flow, &mut left), Poll::Pending);
        assert!(!left.is_empty());
        let mut received = Vec::new();
        while received.len() < down.len() {
            let socket = net.kernel.socket(handle);
            if socket.can_recv() {
                let take = |bytes: &mut [u8]| (bytes.len(), received.extend_from_slice(bytes));
                socket.recv(take).expect("there is something to receive");
            }
            let _ = net.send(flow, &mut left);
            net.run();
        }
        assert!(received == down);
    }
}

#[test]
fn an_idle_flow_stays_for_a_day_and_costs_no_packet() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    transfer(&mut net, handle, flow, &pattern(100, 1), &pattern(100, 2), Duration::from_secs(1));
    net.run();
    net.sleep(Duration::from_secs(60)); // Spare rings and such.
    let packets = net.stats().packets_out + net.stats().packets_in;
    assert_eq!(net.stack.poll_timeout(), None, "nothing is waited for");
    net.sleep(Duration::from_secs(24 * 3_600));
    assert_eq!(net.stats().packets_out + net.stats().packets_in, packets);
    assert_eq!(net.kernel.state(handle), State::Established);
    transfer(&mut net, handle, flow, &pattern(100_000, 1), &pattern(100_000, 2), Duration::from_secs(1));
}

#[test]
fn keep_alive_probes_are_answered() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    let socket = net.kernel.socket(handle);
    socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(30)));
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(100)));
    net.sleep(Duration::from_secs(3_600));
    assert_eq!(net.kernel.state(handle), State::Established);
    transfer(&mut net, handle, flow, &pattern(1_000, 1), &pattern(1_000, 2), Duration::from_secs(1));
}

#[test]
fn a_request_is_acknowledged_with_its_answer() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.kernel.socket(handle).send_slice(b"ping").expect("the socket is open");
    let now = smoltcp::time::Instant::from_millis(1);
    net.kernel.poll(now);
    let request = net.kernel.device.from_kernel.pop_front().expect("the request");
    net.deliver(&request);
    assert_eq!(net.recv_all(flow).0, b"ping");
    assert_eq!(net.send(flow, &mut Bytes::from_static(b"pong")), Poll::Ready(Ok(())));
    let answers = net.collect();
    assert_eq!(answers.len(), 1, "one packet: {answers:?}");
    assert_eq!(answers[0].tcp().payload, b"pong");
}
