//! Ends of connections: orderly, half, reset, late.

use std::{task::Poll, time::Duration};

use bytes::Bytes;
use smoltcp::{iface::SocketHandle, socket::tcp::State, wire::TcpControl};
use tp_netstack::{Event, FlowError, NetstackConfig};

use crate::{
    net::{MODES, Mode, Net, RING_BYTES, pattern},
    opening::{client, client6, server, server6},
    packet,
};

fn kernel_recv(net: &mut Net, handle: SocketHandle) -> Vec<u8> {
    let mut received = Vec::new();
    let socket = net.kernel.socket(handle);
    while socket.can_recv() {
        let take = |bytes: &mut [u8]| (bytes.len(), received.extend_from_slice(bytes));
        socket.recv(take).expect("there is something to receive");
    }
    received
}

#[test]
fn the_container_may_close_its_half_and_go_on_reading() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        let socket = net.kernel.socket(handle);
        socket.send_slice(b"request").expect("the socket is open");
        socket.close();
        net.run();
        assert_eq!(net.recv_all(flow), (b"request".to_vec(), Poll::Ready(Ok(()))));
        assert_eq!(net.recv(flow), Poll::Ready(Ok(None)), "the end stays the end");

        net.sleep(Duration::from_secs(600));
        let answer = pattern(500_000, 9);
        let (mut left, mut received) = (answer.clone(), Vec::new());
        while received.len() < answer.len() {
            let _ = net.send(flow, &mut left);
            net.run();
            received.extend(kernel_recv(&mut net, handle));
        }
        assert!(received == answer);
        net.stack.close(flow);
        net.run();
        assert_eq!(net.kernel.state(handle), State::TimeWait);
        assert_eq!(net.stack.usage().flows, 0, "the last ACK frees the flow");
        assert_eq!(net.stats().resets_out, 0);
    }
}

#[test]
fn the_cluster_may_close_its_half_and_go_on_reading() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        assert_eq!(net.send(flow, &mut Bytes::from_static(b"greeting")), Poll::Ready(Ok(())));
        net.stack.shutdown_write(flow);
        net.run();
        assert_eq!(kernel_recv(&mut net, handle), b"greeting");
        assert!(!net.kernel.socket(handle).may_recv(), "the FIN has arrived");
        assert_eq!(net.send(flow, &mut Bytes::from_static(b"more")), Poll::Ready(Err(FlowError::WriteShutdown)));

        net.sleep(Duration::from_secs(600));
        let upload = pattern(500_000, 9);
        let (mut left, mut received) = (upload.clone(), Vec::new());
        while received.len() < upload.len() {
            let taken = net.kernel.socket(handle).send_slice(&left).expect("this half is open");
            left = left.slice(taken..);
            net.run();
            received.extend(net.recv_all(flow).0);
        }
        assert!(received == upload);
        net.kernel.socket(handle).close();
        net.run();
        assert_eq!(net.recv_all(flow), (Vec::new(), Poll::Ready(Ok(()))));
        net.stack.close(flow);
        net.run();
        assert_eq!(net.kernel.state(handle), State::Closed);
        assert_eq!(net.stack.usage().flows, 0);
        assert_eq!(net.stack.usage().time_waits, 1);
        assert_eq!(net.stats().resets_out, 0);
        net.sleep(Duration::from_secs(11));
        assert_eq!(net.stack.usage().time_waits, 0);
        assert_eq!(net.stack.poll_timeout(), None);
    }
}

#[test]
fn a_fin_right_behind_the_handshake_keeps_its_place() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.syn(client(4000), server());
        net.stack.accept(flow).expect("the SYN is held");
        // The far end has closed before the container's ACK is here.
        net.stack.shutdown_write(flow);
        net.run();
        assert_eq!(net.kernel.state(handle), State::CloseWait);
        net.kernel.socket(handle).send_slice(b"still here").expect("this half is open");
        net.kernel.socket(handle).close();
        net.run();
        assert_eq!(net.recv_all(flow), (b"still here".to_vec(), Poll::Ready(Ok(()))));
        net.stack.close(flow);
        net.run();
        assert_eq!(net.kernel.state(handle), State::Closed);
    }
}

#[test]
fn unread_bytes_survive_time_wait() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.stack.shutdown_write(flow);
    net.run();
    net.kernel.socket(handle).send_slice(b"read me late").expect("the socket is open");
    net.kernel.socket(handle).close();
    net.run();
    assert_eq!(net.kernel.state(handle), State::Closed);
    net.sleep(Duration::from_secs(3_600));
    assert_eq!(net.recv_all(flow), (b"read me late".to_vec(), Poll::Ready(Ok(()))));
    net.stack.close(flow);
    assert_eq!(net.stack.usage().flows, 0);
}

#[test]
fn a_reset_by_the_container_comes_behind_its_data() {
    for mode in MODES {
        for (src, dst) in [(client(4000), server()), (client6(4000), server6())] {
            let mut net = Net::new(mode);
            let (handle, flow) = net.connect(src, dst);
            let sent = pattern(100_000, 3);
            net.kernel.socket(handle).send_slice(&sent).expect("the socket is open");
            net.run();
            assert!(!net.is_reset(flow));
            net.kernel.socket(handle).abort();
            net.run();
            assert!(net.is_reset(flow));
            assert_eq!(net.send(flow, &mut Bytes::from_static(b"x")), Poll::Ready(Err(FlowError::Reset)));
            assert_eq!(net.recv_all(flow), (sent.to_vec(), Poll::Ready(Err(FlowError::Reset))));
            assert_eq!(net.stats().resets_in, 1);
            // The 4-tuple is free at once, whether or not the id has been given back.
            let (again, _) = net.connect(src, dst);
            assert_eq!(net.kernel.state(again), State::Established);
            net.stack.close(flow);
            assert_eq!(net.stack.usage().flows, 1);
        }
    }
}

#[test]
fn a_reset_to_the_container_waits_for_its_data() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        let sent = pattern(600_000, 3); // More than the kernel's ring, so it takes several round trips.
        let mut left = sent.clone();
        let mut received = Vec::new();
        while net.send(flow, &mut left).is_pending() {
            net.run();
            received.extend(kernel_recv(&mut net, handle));
        }
        net.stack.reset_after_drain(flow);
        assert_eq!(net.send(flow, &mut Bytes::from_static(b"x")), Poll::Ready(Err(FlowError::Gone)));
        for _ in 0..100 {
            net.run();
            received.extend(kernel_recv(&mut net, handle));
        }
        assert!(received == sent, "{} of {} bytes arrived before the reset", received.len(), sent.len());
        assert_eq!(net.kernel.state(handle), State::Closed);
        assert_eq!(net.stats().resets_out, 1);
        assert_eq!(net.stack.usage().flows, 0);
    }
}

#[test]
fn an_abort_does_not_wait() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    assert_eq!(net.send(flow, &mut pattern(100_000, 1)), Poll::Ready(Ok(())));
    net.stack.abort(flow);
    net.run();
    assert_eq!(net.kernel.state(handle), State::Closed);
    assert_eq!(kernel_recv(&mut net, handle), b"");
    assert_eq!(net.stack.usage().flows, 0);
}

#[test]
fn closing_with_unread_bytes_resets_behind_the_answer() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        net.kernel.socket(handle).send_slice(b"never read").expect("the socket is open");
        net.run();
        assert_eq!(net.send(flow, &mut Bytes::from_static(b"answer")), Poll::Ready(Ok(())));
        net.stack.close(flow);
        net.run();
        assert_eq!(net.kernel.state(handle), State::Closed);
        assert_eq!(kernel_recv(&mut net, handle), b"answer");
        assert_eq!(net.stats().resets_out, 1);
        assert_eq!(net.stack.usage().flows, 0);
    }
}

#[test]
fn bytes_after_a_close_are_reset() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.stack.close(flow);
    net.run();
    assert_eq!(net.kernel.state(handle), State::CloseWait);
    net.kernel.socket(handle).send_slice(b"anybody there?").expect("this half is open");
    net.run();
    assert_eq!(net.kernel.state(handle), State::Closed);
    assert_eq!(net.stack.usage().flows, 0);
}

#[test]
fn a_closed_flow_waits_for_the_containers_fin_only_so_long() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.stack.close(flow);
    net.sleep(Duration::from_secs(59));
    assert_eq!((net.kernel.state(handle), net.stack.usage().flows), (State::CloseWait, 1));
    net.sleep(Duration::from_secs(2));
    assert_eq!((net.kernel.state(handle), net.stack.usage().flows), (State::CloseWait, 0));
    assert_eq!(net.stats().resets_out, 0, "what the container still reads is not disturbed");
    net.kernel.socket(handle).close();
    net.run();
    assert_eq!(net.kernel.state(handle), State::Closed);
}

#[test]
fn a_slow_reader_gets_all_that_was_queued_before_the_close() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    let sent = pattern(250_000, 3);
    assert_eq!(net.send(flow, &mut sent.clone()), Poll::Ready(Ok(())));
    net.stack.close(flow);
    net.run();
    let mut received = Vec::new();
    while received.len() < sent.len() {
        // 4 KiB every 5 seconds: it takes five minutes, five times the wait for a FIN.
        net.sleep(Duration::from_secs(5));
        let mut part = [0; 4096];
        let len = net.kernel.socket(handle).recv_slice(&mut part).expect("the flow lives");
        received.extend_from_slice(&part[..len]);
    }
    assert!(received == sent);
    assert_eq!(net.kernel.state(handle), State::CloseWait);
    assert_eq!((net.stack.usage().flows, net.stats().resets_out), (0, 0));
}

#[test]
fn a_lost_last_ack_is_sent_again() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.stack.shutdown_write(flow);
    net.run();
    net.kernel.socket(handle).close();
    let now = smoltcp::time::Instant::from_millis(1);
    net.kernel.poll(now);
    let fin = net.kernel.device.from_kernel.pop_front().expect("the FIN");
    net.stack.close(flow);
    let lost = net.exchange(&fin);
    assert_eq!(lost.len(), 1);
    assert_eq!(net.stack.usage().flows, 0, "the rings are free at once");
    assert_eq!(net.kernel.state(handle), State::LastAck);

    let again = net.exchange(&fin);
    assert_eq!(again.len(), 1);
    let (lost, again) = (lost[0].tcp(), again[0].tcp());
    assert_eq!(again.control, TcpControl::None);
    assert_eq!((again.seq_number, again.ack_number), (lost.seq_number, lost.ack_number));
    net.sleep(Duration::from_secs(2));
    assert_eq!(net.kernel.state(handle), State::Closed);
}

#[test]
fn a_syn_in_time_wait_opens_anew() {
    for is_given_back in [true, false] {
        let mut net = Net::new(Mode::Offload);
        let (handle, flow) = net.connect(client(4000), server());
        net.stack.shutdown_write(flow);
        net.run();
        net.kernel.socket(handle).close();
        net.run();
        if is_given_back {
            net.stack.close(flow);
        }
        net.run();
        assert_eq!(net.stack.usage().time_waits, 1);
        net.kernel.forget(handle);
        let (again, flow_again) = net.connect(client(4000), server());
        assert_eq!(net.kernel.state(again), State::Established);
        assert_ne!(flow, flow_again);
        assert_eq!(net.stack.usage().time_waits, 0);
        // The old 4-tuple's expiry does not touch the new flow.
        net.sleep(Duration::from_secs(60));
        assert_eq!(net.kernel.state(again), State::Established);
        assert!(!net.is_reset(flow_again));
    }
}

#[test]
fn a_syn_for_a_forgotten_connection_is_challenged() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.kernel.socket(handle).send_slice(b"hello").expect("the socket is open");
    net.run();
    net.kernel.forget(handle);
    // The kernel answers our challenge with a RST, and sends its SYN again a second later.
    let again = net.kernel.connect(client(4000), server(), RING_BYTES);
    net.sleep(Duration::from_secs(3));
    assert!(net.is_reset(flow));
    let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("no new SYN") };
    net.stack.accept(flow).expect("the SYN is held");
    net.run();
    assert_eq!(net.kernel.state(again), State::Established);
}

#[test]
fn both_ends_may_close_at_once() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (handle, flow) = net.connect(client(4000), server());
        net.kernel.socket(handle).send_slice(b"bye").expect("the socket is open");
        net.kernel.socket(handle).close();
        assert_eq!(net.send(flow, &mut Bytes::from_static(b"bye too")), Poll::Ready(Ok(())));
        net.stack.shutdown_write(flow);
        net.run();
        assert_eq!(kernel_recv(&mut net, handle), b"bye too");
        assert_eq!(net.recv_all(flow), (b"bye".to_vec(), Poll::Ready(Ok(()))));
        net.stack.close(flow);
        net.run();
        assert_eq!(net.stack.usage().flows, 0);
        assert_eq!(net.stats().resets_out + net.stats().resets_in, 0);
    }
}

#[test]
fn orderly_ends_survive_loss() {
    for seed in 0..20_u16 {
        let mut net =
            Net::with_config(Mode::Offload, NetstackConfig { seed: seed.into(), ..NetstackConfig::default() });
        let (handle, flow) = net.connect(client(4000 + seed), server());
        net.loss = 30;
        let _ = net.send(flow, &mut pattern(20_000, 1));
        net.kernel.socket(handle).send_slice(&pattern(20_000, 2)).expect("the socket is open");
        net.stack.shutdown_write(flow);
        net.kernel.socket(handle).close();
        let mut received = Vec::new();
        for _ in 0..300 {
            net.sleep(Duration::from_secs(2));
            received.extend(kernel_recv(&mut net, handle));
        }
        assert_eq!(received, pattern(20_000, 1));
        assert_eq!(net.recv_all(flow), (pattern(20_000, 2).to_vec(), Poll::Ready(Ok(()))));
        net.stack.close(flow);
        net.sleep(Duration::from_secs(120));
        assert_eq!(net.stack.usage().flows, 0);
    }
}

#[test]
fn a_removed_device_ends_its_flows() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.kernel.socket(handle).send_slice(b"last words").expect("the socket is open");
    net.run();
    net.stack.remove_tun(crate::net::TUN);
    assert!(net.is_reset(flow));
    assert_eq!(net.recv_all(flow), (b"last words".to_vec(), Poll::Ready(Err(FlowError::Reset))));
    net.stack.close(flow);
    assert_eq!(net.stack.usage().flows, 0);
}

#[test]
fn an_out_of_window_reset_is_ignored() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    net.run();
    for seq in [0, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
        net.deliver(&packet::tcp(client(4000), server(), TcpControl::Rst, seq, None));
    }
    // One of the four may lie in the window; the window is far smaller than what they are apart.
    let is_reset = net.is_reset(flow);
    assert!(!is_reset, "at least three of them are outside");
    assert_eq!(net.kernel.state(handle), State::Established);
}
