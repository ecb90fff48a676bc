//! The container's kernel, played by a second smoltcp stack with a device in memory.

use std::{collections::VecDeque, net::SocketAddr};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::Instant,
    wire::{HardwareAddress, IpEndpoint, IpListenEndpoint},
};

/// A TCP/IP stack that opens connections.
pub(crate) struct Kernel {
    iface: Interface,
    pub(crate) device: Wire,
    sockets: SocketSet<'static>,
}

/// Packets on their way, bare IP.
pub(crate) struct Wire {
    pub(crate) to_kernel: VecDeque<Vec<u8>>,
    pub(crate) from_kernel: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Kernel {
    pub(crate) fn new(mtu: usize) -> Self {
        let mut device = Wire { to_kernel: VecDeque::new(), from_kernel: VecDeque::new(), mtu };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut iface = Interface::new(config, &mut device, Instant::from_secs(1));
        iface.set_any_ip(true);
        Self { iface, device, sockets: SocketSet::new(Vec::new()) }
    }

    /// Sends a SYN at the next poll.
    pub(crate) fn connect(&mut self, src: SocketAddr, dst: SocketAddr, ring_bytes: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; ring_bytes]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let remote = IpEndpoint::new(dst.ip().into(), dst.port());
        let local = IpListenEndpoint { addr: Some(src.ip().into()), port: src.port() };
        socket.connect(self.iface.context(), remote, local).expect("the addresses fit");
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn state(&self, handle: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(handle).state()
    }

    /// Forgets a socket without a word, as a crash would.
    pub(crate) fn forget(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    pub(crate) fn poll(&mut self, now: Instant) {
        self.iface.poll(now, &mut self.device, &mut self.sockets);
    }

    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.iface.poll_at(now, &self.sockets)
    }
}

impl Device for Wire {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Packet, Outgoing<'_>)> {
        let packet = self.to_kernel.pop_front()?;
        Some((Packet(packet), Outgoing(&mut self.from_kernel)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.from_kernel))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

pub(crate) struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(crate) struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}
