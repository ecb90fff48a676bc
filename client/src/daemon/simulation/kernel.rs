//! The kernel of a container: TCP sockets on the other end of the TUN, which is a pair of sockets here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::daemon::tun::{TUN_MTU, Tun};

/// The container's address on the TUN, and a router that every address is behind.
const ADDRESS: Ipv4Address = Ipv4Address::new(198, 18, 0, 1);

/// Buffers of a socket, each way.
const SOCKET_BYTES: usize = 256 << 10;

/// Packets that the device queues, in bytes: more are lost, as with a TUN.
const DEVICE_BYTES: usize = 4 << 20;

/// The kernel. Clones share it.
#[derive(Clone)]
pub(super) struct Kernel(Rc<Shared>);

struct Shared {
    state: RefCell<State>,
    /// Somebody used a socket.
    used: Notify,
    next_port: Cell<u16>,
}

struct State {
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Device,
    start: Instant,
}

/// A TCP socket.
pub(super) struct TcpSocket {
    kernel: Kernel,
    handle: SocketHandle,
}

impl Kernel {
    /// Starts, and returns the daemon's end of its TUN.
    pub(super) fn boot() -> (Self, Tun) {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
        let (near, far) = pair.expect("the system has sockets");
        for end in [&near, &far] {
            rustix::net::sockopt::set_socket_send_buffer_size(end, DEVICE_BYTES).expect("a buffer has a size");
        }
        let mut device = Device { tun: Tun::of_a_pair(near).register().expect("the runtime has a reactor") };
        let start = Instant::now();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 32)).expect("there is room for one");
        });
        interface.routes_mut().add_default_ipv4_route(ADDRESS).expect("there is room for one");
        let state = State { interface, sockets: SocketSet::new(Vec::new()), device, start };
        let shared = Shared { state: RefCell::new(state), used: Notify::new(), next_port: Cell::new(40_000) };
        let kernel = Self(Rc::new(shared));
        spawn_local(kernel.clone().run());
        (kernel, Tun::of_a_pair(far))
    }

    async fn run(self) {
        loop {
            let wait = {
                let State { interface, sockets, device, start } = &mut *self.0.state.borrow_mut();
                let now = SmolInstant::from_micros(i64::try_from(start.elapsed().as_micros()).expect("it is not long"));
                interface.poll(now, device, sockets);
                interface.poll_delay(now, sockets).map(std::time::Duration::from)
            };
            tokio::select! {
                () = poll_fn(|cx| match self.0.state.borrow().device.tun.poll_read_ready(cx) {
                    Poll::Ready(ready) => { drop(ready); Poll::Ready(()) }
                    Poll::Pending => Poll::Pending,
                }) => {}
                () = self.0.used.notified() => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Connects.
    pub(super) async fn connect(&self, to: SocketAddr) -> Result<TcpSocket, tcp::State> {
        let buffer = || tcp::SocketBuffer::new(vec![0; SOCKET_BYTES]);
        let port = self.0.next_port.replace(self.0.next_port.get() + 1);
        let handle = {
            let State { interface, sockets, .. } = &mut *self.0.state.borrow_mut();
            let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            socket.connect(interface.context(), to, port).expect("the address is one of the other end");
            handle
        };
        self.0.used.notify_one();
        let socket = TcpSocket { kernel: self.clone(), handle };
        let state = socket
            .until(|socket, cx| match socket.state() {
                tcp::State::SynSent => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                state => Poll::Ready(state),
            })
            .await;
        if state == tcp::State::Closed { Err(state) } else { Ok(socket) }
    }
}

impl TcpSocket {
    async fn until<T>(
        &self,
        mut look: impl FnMut(&mut tcp::Socket<'static>, &mut std::task::Context<'_>) -> Poll<T>,
    ) -> T {
        poll_fn(|cx| look(self.kernel.0.state.borrow_mut().sockets.get_mut(self.handle), cx)).await
    }

    /// Sends all, as the other end takes it.
    pub(super) async fn send_all(&self, mut payload: &[u8]) {
        while !payload.is_empty() {
            let sent = self
                .until(|socket, cx| match socket.send_slice(payload) {
                    Ok(0) => {
                        socket.register_send_waker(cx.waker());
                        Poll::Pending
                    }
                    sent => Poll::Ready(sent.expect("nobody resets it")),
                })
                .await;
            payload = &payload[sent..];
            self.kernel.0.used.notify_one();
        }
    }

    /// Says that this was all.
    pub(super) fn close(&self) {
        self.kernel.0.state.borrow_mut().sockets.get_mut::<tcp::Socket<'_>>(self.handle).close();
        self.kernel.0.used.notify_one();
    }

    /// Receives until the other end says that this was all.
    pub(super) async fn read_to_end(&self) -> Vec<u8> {
        let mut received = Vec::new();
        loop {
            let len = self
                .until(|socket, cx| {
                    let len = socket.recv(|data| {
                        received.extend_from_slice(data);
                        (data.len(), data.len())
                    });
                    match len {
                        Ok(0) => {
                            socket.register_recv_waker(cx.waker());
                            Poll::Pending
                        }
                        Ok(len) => Poll::Ready(len),
                        Err(tcp::RecvError::Finished) => Poll::Ready(0),
                        Err(tcp::RecvError::InvalidState) => panic!("the connection was reset"),
                    }
                })
                .await;
            self.kernel.0.used.notify_one();
            if len == 0 {
                return received;
            }
        }
    }
}

/// The container's end of the TUN.
struct Device {
    tun: AsyncFd<Tun>,
}

impl phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sender<'_>)> {
        let mut packet = vec![0; usize::from(TUN_MTU)];
        let len = self.tun.try_io(Interest::READABLE, |tun| tun.read(&mut packet)).ok()?;
        packet.truncate(len);
        Some((Received(packet), Sender(&self.tun)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sender<'_>> {
        Some(Sender(&self.tun))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(TUN_MTU);
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sender<'d>(&'d AsyncFd<Tun>);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let filled = fill(&mut packet);
        let sent = self.0.try_io(Interest::WRITABLE, |tun| tun.write(&packet));
        // A full device loses a packet; TCP sends it again.
        drop(sent);
        filled
    }
}
