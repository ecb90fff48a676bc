//! A thousand flows at once, and the driver's waker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use smoltcp::socket::tcp::State;
use tp_netstack::Event;

use crate::{
    net::{MODES, Mode, Net, pattern},
    opening::{client, server},
    packet,
};

#[test]
fn a_thousand_flows_carry_their_own_bytes() {
    let mut net = Net::new(Mode::Offload);
    let handles: Vec<_> =
        (0..1_000).map(|number| net.kernel.connect(client(1_000 + number), server(), 16 << 10)).collect();
    net.run();
    let mut flows: Vec<_> = net
        .events
        .drain(..)
        .map(|event| match event {
            Event::TcpSyn { flow, key } => (key.src.port(), flow),
            event => panic!("{event:?}"),
        })
        .collect();
    flows.sort();
    assert_eq!(flows.len(), 1_000);
    for (_, flow) in &flows {
        net.stack.accept(*flow).expect("the SYN is held");
    }
    net.run();
    assert_eq!(net.stack.usage().flows, 1_000);
    assert!(net.stack.usage().ring_bytes <= 128 << 20, "{} bytes of rings", net.stack.usage().ring_bytes);
    for (handle, (port, _)) in handles.iter().zip(&flows) {
        assert_eq!(net.kernel.state(*handle), State::Established);
        net.kernel.socket(*handle).send_slice(&pattern(3_000, u64::from(*port))).expect("the socket is open");
    }
    net.run();
    for (port, flow) in &flows {
        assert_eq!(net.recv_all(*flow).0, pattern(3_000, u64::from(*port)));
        assert_eq!(net.send(*flow, &mut pattern(5_000, u64::from(*port) + 1)), Poll::Ready(Ok(())));
    }
    net.run();
    for (handle, (port, flow)) in handles.iter().zip(&flows) {
        let mut received = [0; 5_000];
        let len = net.kernel.socket(*handle).recv_slice(&mut received).expect("the answer");
        assert_eq!(received[..len], pattern(5_000, u64::from(*port) + 1));
        net.stack.close(*flow);
        net.kernel.socket(*handle).close();
    }
    net.sleep(Duration::from_secs(30));
    let usage = net.stack.usage();
    assert_eq!((usage.flows, usage.pending_syns, usage.time_waits, usage.ring_bytes), (0, 0, 0, 0));
    assert_eq!(net.stack.poll_timeout(), None);
}

#[test]
fn rings_shrink_with_the_number_of_flows() {
    let mut net = Net::new(Mode::Offload);
    let mut before = 0;
    let mut sizes = Vec::new();
    for number in 0..200 {
        net.connect(client(1_000 + number), server());
        let bytes = net.stack.usage().ring_bytes;
        sizes.push((bytes - before) / 2);
        before = bytes;
    }
    assert_eq!(
        (sizes[0], sizes[7], sizes[8], sizes[31], sizes[32], sizes[127], sizes[128]),
        (256 << 10, 256 << 10, 128 << 10, 128 << 10, 64 << 10, 64 << 10, 16 << 10)
    );
}

#[test]
fn connections_one_after_another_reuse_their_rings() {
    for mode in MODES {
        let mut net = Net::new(mode);
        for number in 0..500_u16 {
            let (handle, flow) = net.connect(client(1_000 + number % 100), server());
            net.kernel.socket(handle).send_slice(&pattern(1_000, number.into())).expect("the socket is open");
            net.run();
            assert_eq!(net.recv_all(flow).0, pattern(1_000, number.into()));
            assert_eq!(net.send(flow, &mut pattern(2_000, number.into())), Poll::Ready(Ok(())));
            net.stack.close(flow);
            net.run();
            let mut received = [0; 2_000];
            net.kernel.socket(handle).recv_slice(&mut received).expect("the answer");
            assert_eq!(received[..], pattern(2_000, number.into()));
            net.kernel.socket(handle).close();
            net.run();
            net.kernel.forget(handle);
            assert_eq!(net.stack.usage().flows, 0);
            assert!(net.stack.usage().ring_bytes <= 1 << 20, "one pair of rings is enough");
        }
        assert_eq!(net.stack.usage().time_waits, 100);
        net.sleep(Duration::from_secs(11));
        assert_eq!(net.stack.usage().time_waits, 0);
    }
}

#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn tasks_and_driver_are_woken_when_there_is_something_to_do() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(4000), server());
    let (reader, writer, resetter, driver) =
        (Arc::<Counter>::default(), Arc::<Counter>::default(), Arc::<Counter>::default(), Arc::<Counter>::default());
    let count = |counter: &Arc<Counter>| counter.0.load(Ordering::Relaxed);
    let waker = |counter: &Arc<Counter>| Waker::from(Arc::clone(counter));

    assert!(net.stack.poll_recv(flow, 100, &mut Context::from_waker(&waker(&reader))).is_pending());
    assert!(net.stack.poll_ready(&mut Context::from_waker(&waker(&driver))).is_pending());
    net.kernel.socket(handle).send_slice(&[1; 150]).expect("the socket is open");
    net.run();
    assert_eq!((count(&reader), count(&driver)), (1, 0), "the driver knows what it has read itself");

    // Taking bytes may open the window, sending may send: both are the driver's work.
    let taken = net.stack.poll_recv(flow, 100, &mut Context::from_waker(&waker(&reader)));
    assert_eq!(taken, Poll::Ready(Ok(Some(Bytes::from_static(&[1; 100])))));
    assert_eq!(count(&driver), 1);
    assert!(net.stack.poll_ready(&mut Context::from_waker(&waker(&driver))).is_ready());
    net.run();
    assert!(net.stack.poll_ready(&mut Context::from_waker(&waker(&driver))).is_pending());

    let mut payload = pattern(2 << 20, 1);
    assert!(net.stack.poll_send(flow, &mut payload, &mut Context::from_waker(&waker(&writer))).is_pending());
    assert_eq!(count(&driver), 2);
    assert_eq!(count(&writer), 0);
    net.run();
    assert_eq!(count(&writer), 1, "an ACK made room");

    assert!(net.stack.poll_reset(flow, &mut Context::from_waker(&waker(&resetter))).is_pending());
    let _ = net.stack.poll_send(flow, &mut payload, &mut Context::from_waker(&waker(&writer)));
    net.kernel.socket(handle).abort();
    net.run();
    assert_eq!((count(&resetter), count(&writer)), (1, 2));
}

#[test]
fn a_blocked_driver_is_not_called_for_packets() {
    let mut net = Net::new(Mode::Offload);
    let now = net.now();
    net.deliver(&packet::tcp(client(1), server(), smoltcp::wire::TcpControl::None, 5, Some(5)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(net.stack.poll_ready(&mut cx).is_ready());
    let first = net.stack.poll_transmit(now).expect("a reset").bytes.to_vec();
    net.stack.transmit_blocked();
    net.deliver(&packet::tcp(client(2), server(), smoltcp::wire::TcpControl::None, 5, Some(5)));
    assert!(net.stack.poll_ready(&mut cx).is_pending());
    assert_eq!(net.stack.poll_transmit(now).expect("the same reset").bytes, first);
    assert!(net.stack.poll_ready(&mut cx).is_ready());
    assert_ne!(net.stack.poll_transmit(now).expect("the other reset").bytes, first);
    assert!(net.stack.poll_transmit(now).is_none());
}
