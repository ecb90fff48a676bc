//! Both stacks, the wire between them, and the clock.

use std::{
    net::SocketAddr,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use smoltcp::{iface::SocketHandle, wire::checksum};
use tp_netstack::{
    Event, FlowError, FlowId, FlowKey, Netstack, NetstackConfig, Offload, Stats, TunId, VIRTIO_HEADER_BYTES,
};

use crate::{kernel::Kernel, packet::Parsed};

pub(crate) const TUN: TunId = TunId(1);
/// Rings of the kernel's sockets, unless a test says otherwise.
pub(crate) const RING_BYTES: usize = 256 << 10;
/// Packets that may cross the wire in one test before it counts as a loop.
const PACKETS_MAX: usize = 3_000_000;

/// How the device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Super-packets: virtio-net header, MTU 65,535.
    Offload,
    /// Super-packets over a small MTU, so that they have to be cut.
    OffloadSmall,
    /// No offload at all, MTU 1,500.
    Plain,
}

pub(crate) const MODES: [Mode; 3] = [Mode::Offload, Mode::OffloadSmall, Mode::Plain];

impl Mode {
    fn mtu(self) -> usize {
        match self {
            Self::Offload => 65_535,
            Self::OffloadSmall | Self::Plain => 1_500,
        }
    }

    fn offload(self) -> Offload {
        match self {
            Self::Offload | Self::OffloadSmall => Offload::VirtioNet,
            Self::Plain => Offload::Disabled { mtu: 1_500 },
        }
    }
}

pub(crate) struct Net {
    pub(crate) stack: Netstack,
    pub(crate) kernel: Kernel,
    pub(crate) events: Vec<Event>,
    /// Every packet that left the stack since the last look, whole and bare.
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) is_recording: bool,
    /// Percent of packets lost in each direction.
    pub(crate) loss: u32,
    /// How often the device refuses a packet, in percent.
    pub(crate) refusals: u32,
    mode: Mode,
    start: Instant,
    now: Instant,
    random: u64,
    packets: usize,
}

impl Net {
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with_config(mode, NetstackConfig::default())
    }

    #[expect(clippy::disallowed_methods, reason = "a fake clock has to start somewhere")]
    pub(crate) fn with_config(mode: Mode, config: NetstackConfig) -> Self {
        let start = Instant::now();
        let mut stack = Netstack::new(config, start);
        stack.add_tun(TUN, mode.offload());
        Self {
            stack,
            kernel: Kernel::new(mode.mtu()),
            events: Vec::new(),
            sent: Vec::new(),
            is_recording: false,
            loss: 0,
            refusals: 0,
            mode,
            start,
            now: start,
            random: 0x9E37_79B9_7F4A_7C15,
            packets: 0,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn stats(&self) -> &Stats {
        self.stack.stats()
    }

    /// Carries packets both ways until both ends are quiet.
    pub(crate) fn run(&mut self) {
        loop {
            let now = self.kernel_now();
            self.kernel.poll(now);
            let mut has_moved = false;
            while let Some(packet) = self.kernel.device.from_kernel.pop_front() {
                has_moved = true;
                if !self.is_lost() {
                    self.deliver(&packet);
                }
            }
            has_moved |= self.transmit();
            if !has_moved {
                return;
            }
        }
    }

    /// Carries what the stack has to send; `true` when there was something.
    fn transmit(&mut self) -> bool {
        let mut has_moved = false;
        while let Some(transmit) = self.stack.poll_transmit(self.now) {
            has_moved = true;
            self.packets += 1;
            assert!(self.packets < PACKETS_MAX, "the stacks talk for ever");
            assert_eq!(transmit.tun, TUN);
            let packet = finish(self.mode, transmit.bytes);
            if self.roll() < self.refusals {
                self.stack.transmit_blocked();
                continue;
            }
            if self.is_recording {
                self.sent.push(packet.clone());
            }
            if !self.is_lost() {
                self.kernel.device.to_kernel.push_back(packet);
            }
        }
        while let Some(event) = self.stack.poll_event() {
            self.events.push(event);
        }
        has_moved
    }

    /// Hands a bare packet to the stack, as the device would.
    pub(crate) fn deliver(&mut self, packet: &[u8]) {
        self.packets += 1;
        assert!(self.packets < PACKETS_MAX, "the stacks talk for ever");
        if self.mode == Mode::Plain {
            self.stack.handle_packet(TUN, packet, self.now);
        } else {
            let with_header = [&[0; VIRTIO_HEADER_BYTES], packet].concat();
            self.stack.handle_packet(TUN, &with_header, self.now);
        }
        while let Some(event) = self.stack.poll_event() {
            self.events.push(event);
        }
    }

    /// Hands a bare packet to the stack and returns what it answers.
    pub(crate) fn exchange(&mut self, packet: &[u8]) -> Vec<Parsed> {
        self.deliver(packet);
        self.collect()
    }

    /// Returns what the stack has to send instead of carrying it.
    pub(crate) fn collect(&mut self) -> Vec<Parsed> {
        self.is_recording = true;
        self.sent.clear();
        self.transmit();
        self.kernel.device.to_kernel.clear();
        self.is_recording = false;
        self.sent.drain(..).map(|packet| Parsed::new(&packet)).collect()
    }

    /// Lets time pass until the next timer of either end; `false` when there is none within `limit`.
    pub(crate) fn sleep_until_timer(&mut self, limit: Duration) -> bool {
        let now = self.kernel_now();
        let kernel = self.kernel.poll_at(now).map(|at| self.start + Duration::from_micros(at.total_micros() as u64));
        let Some(at) = self.stack.poll_timeout().into_iter().chain(kernel).min() else { return false };
        if at > self.now + limit {
            return false;
        }
        self.now = self.now.max(at) + Duration::from_micros(1);
        self.stack.handle_timeout(self.now);
        true
    }

    /// Lets time pass, with every timer on the way.
    pub(crate) fn sleep(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run();
        while self.sleep_until_timer(end.saturating_duration_since(self.now)) {
            self.run();
        }
        self.now = end;
        self.stack.handle_timeout(end);
        self.run();
    }

    fn kernel_now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros((self.now - self.start).as_micros() as i64)
    }

    /// xorshift: the same numbers in every run.
    fn roll(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % 100) as u32
    }

    fn is_lost(&mut self) -> bool {
        self.loss > 0 && self.roll() < self.loss
    }
}

/// What a driver does with flows.
impl Net {
    /// Sends a SYN and returns the flow that is held for it.
    pub(crate) fn syn(&mut self, src: SocketAddr, dst: SocketAddr) -> (SocketHandle, FlowId) {
        let handle = self.kernel.connect(src, dst, RING_BYTES);
        self.run();
        let Some(Event::TcpSyn { flow, key }) = self.events.pop() else { panic!("no SYN arrived") };
        assert_eq!(key, FlowKey { tun: TUN, src, dst });
        (handle, flow)
    }

    /// Opens a connection.
    pub(crate) fn connect(&mut self, src: SocketAddr, dst: SocketAddr) -> (SocketHandle, FlowId) {
        let (handle, flow) = self.syn(src, dst);
        self.stack.accept(flow).expect("the SYN is held");
        self.run();
        (handle, flow)
    }

    pub(crate) fn recv(&mut self, flow: FlowId) -> Poll<Result<Option<Bytes>, FlowError>> {
        self.stack.poll_recv(flow, usize::MAX, &mut Context::from_waker(Waker::noop()))
    }

    pub(crate) fn send(&mut self, flow: FlowId, payload: &mut Bytes) -> Poll<Result<(), FlowError>> {
        self.stack.poll_send(flow, payload, &mut Context::from_waker(Waker::noop()))
    }

    pub(crate) fn is_reset(&mut self, flow: FlowId) -> bool {
        self.stack.poll_reset(flow, &mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Reads all that the flow has; returns it and how it went on.
    pub(crate) fn recv_all(&mut self, flow: FlowId) -> (Vec<u8>, Poll<Result<(), FlowError>>) {
        let mut received = Vec::new();
        loop {
            match self.recv(flow) {
                Poll::Ready(Ok(Some(bytes))) => received.extend_from_slice(&bytes),
                Poll::Ready(Ok(None)) => return (received, Poll::Ready(Ok(()))),
                Poll::Ready(Err(error)) => return (received, Poll::Ready(Err(error))),
                Poll::Pending => return (received, Poll::Pending),
            }
        }
    }
}

/// What a device does to a packet: takes its header off, cuts nothing, completes its checksum.
fn finish(mode: Mode, bytes: &[u8]) -> Vec<u8> {
    if mode == Mode::Plain {
        assert!(bytes.len() <= 1_500 || bytes[9] != 6, "a TCP packet of {} bytes is longer than the MTU", bytes.len());
        return bytes.to_vec();
    }
    let (header, packet) = bytes.split_at(VIRTIO_HEADER_BYTES);
    let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (header_len, segment_bytes, start, offset) = (field(2), field(4), field(6), field(8));
    let mut packet = packet.to_vec();
    if header[1] != 0 {
        assert_eq!(header[1], if packet[0] >> 4 == 4 { 1 } else { 4 }, "GSO type");
        assert!(segment_bytes > 0 && header_len + segment_bytes <= mode.mtu(), "GSO size {segment_bytes}");
        assert!(packet.len() > header_len + segment_bytes, "nothing to cut");
        assert_eq!(header[0], 1, "GSO needs checksum offload");
    } else {
        let is_tcp = if packet[0] >> 4 == 4 { packet[9] == 6 } else { packet[6] == 6 };
        assert!(!is_tcp || packet.len() <= mode.mtu(), "a packet of {} bytes is not cut", packet.len());
    }
    if header[0] == 1 {
        let sum = !checksum::data(&packet[start..]);
        let sum = if sum == 0 { u16::MAX } else { sum };
        packet[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
