//! Joins the network stack to the tunnel: one task per TCP flow, UDP association and DNS query.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};
use tp_netstack::{
    AssociationId, EchoRequest, Event, FlowError, FlowId, FlowKey, Netstack, NetstackConfig, Refusal, TunId,
    Unreachable,
};
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::lane::Direction;
use tp_protocol::limits;
use tp_protocol::open::{Open, OpenRefused, Transport};
use tp_tunnel::error::FlowOpenError;
use tp_tunnel::flow::{Flow, FlowReceiver, FlowSender};

use crate::daemon::dns::Resolver;
use crate::daemon::egress::Egress;
use crate::daemon::nat::Nat;
use crate::daemon::nat::destination::Destination;
use crate::daemon::tun::Tun;
use crate::daemon::tunnel::{LANE_WAIT, Moving, Tunnel};

/// Packets taken from or given to the TUN before the other direction and the flow tasks get their turn.
const BATCH_PACKETS: usize = 64;

/// Bytes taken from a flow's ring at once: a frame's worth.
const READ_BYTES: usize = limits::MAX_FRAME_BYTES as usize;

/// How long the manager may dial. Linux clients retransmit a SYN for about 130 s (tcp(7), `tcp_syn_retries`), but people
/// and load balancers expect an answer sooner.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long opening a flow may take, with the wait for a tunnel that is being made again.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(LANE_WAIT.as_secs() + DIAL_TIMEOUT.as_secs());

/// How long a TCP connection to the resolver may be idle (RFC 7766 section 6.2.3).
const DNS_TCP_IDLE: Duration = Duration::from_secs(10);

/// How long a flow that the container reset is kept, so that the tunnel carries what came before the reset.
const RESET_LINGER: Duration = Duration::from_secs(5);

/// DNS queries answered at once; the next ones are dropped, and the client asks again.
const MAX_DNS_QUERIES: usize = 512;

/// Longest packet: a virtio-net header and the largest IP packet.
const MAX_PACKET_BYTES: usize = 16 + 65_535;

/// The network stack and what its flow tasks share. Lives on one thread.
pub(crate) struct Flows {
    stack: RefCell<Netstack>,
    tunnel: Tunnel,
    resolver: Rc<Resolver>,
    nat: Rc<RefCell<Nat>>,
    namespace: String,
    egress: Rc<Egress>,
    traffic: Traffic,
    dns_queries: Cell<usize>,
    echoes: Cell<usize>,
}

/// The time on tokio's clock, by which everything waits.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Payload bytes moved since the start.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From containers to the cluster.
    pub(crate) up_bytes: Cell<u64>,
    /// From the cluster to containers.
    pub(crate) down_bytes: Cell<u64>,
    /// When payload last moved.
    pub(crate) last: Cell<Option<Instant>>,
}

impl Traffic {
    fn count(&self, counter: &Cell<u64>, len: usize) {
        counter.set(counter.get() + len as u64);
        self.last.set(Some(now()));
    }
}

impl Flows {
    /// Starts with no device.
    pub(crate) fn new(
        tunnel: Tunnel,
        resolver: Rc<Resolver>,
        nat: Rc<RefCell<Nat>>,
        egress: Rc<Egress>,
        namespace: &str,
        seed: u64,
    ) -> Rc<Self> {
        let config = NetstackConfig { seed, ..NetstackConfig::default() };
        let mut stack = Netstack::new(config, now());
        stack.serve_datagrams(resolver.address());
        Rc::new(Self {
            stack: RefCell::new(stack),
            tunnel,
            resolver,
            nat,
            namespace: namespace.to_owned(),
            egress,
            traffic: Traffic::default(),
            dns_queries: Cell::new(0),
            echoes: Cell::new(0),
        })
    }

    /// Open TCP flows and UDP associations.
    pub(crate) fn open_flows(&self) -> (u64, u64) {
        let usage = self.stack.borrow().usage();
        (usage.flows as u64, usage.associations as u64)
    }

    /// What was moved so far.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Moves packets between one TUN and the stack until the device fails.
    ///
    /// # Errors
    /// The device's error.
    pub(crate) async fn drive(self: Rc<Self>, id: TunId, tun: Tun) -> io::Result<()> {
        let offload = tun.offload();
        let tun = tun.register()?;
        self.stack.borrow_mut().add_tun(id, offload);
        let mut packet = vec![0; MAX_PACKET_BYTES];
        loop {
            self.read_packets(id, &tun, &mut packet)?;
            while let Some(event) = self.next_event() {
                self.on_event(event);
            }
            // The flow tasks run first, so that one packet carries their data, the ACK and the window update.
            tokio::task::yield_now().await;
            let blocked = self.write_packets(&tun)?;
            let timeout = self.stack.borrow().poll_timeout();
            tokio::select! {
                readable = tun.readable() => drop(readable?),
                writable = tun.writable(), if blocked => drop(writable?),
                () = poll_fn(|cx| self.stack.borrow_mut().poll_ready(cx)), if !blocked => {}
                () = sleep_until(timeout.unwrap_or_else(now).into()), if timeout.is_some() => {
                    self.stack.borrow_mut().handle_timeout(now());
                }
            }
        }
    }

    fn read_packets(&self, id: TunId, tun: &AsyncFd<Tun>, packet: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH_PACKETS {
            match tun.try_io(Interest::READABLE, |tun| tun.read(packet)) {
                Ok(len) => self.stack.borrow_mut().handle_packet(id, &packet[..len], now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what is due; true when the device took no more.
    fn write_packets(&self, tun: &AsyncFd<Tun>) -> io::Result<bool> {
        let mut stack = self.stack.borrow_mut();
        for _ in 0..BATCH_PACKETS {
            let Some(packet) = stack.poll_transmit(now()) else {
                break;
            };
            match tun.try_io(Interest::WRITABLE, |tun| tun.write(packet.bytes)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stack.transmit_blocked();
                    return Ok(true);
                }
                Err(error) if is_lost_packet(&error) => {
                    tracing::warn!(len = packet.bytes.len(), %error, "the kernel refused a packet");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn next_event(&self) -> Option<Event> {
        self.stack.borrow_mut().poll_event()
    }

    /// Starts the task that a flow, association or query needs. Each ends with the thing it serves.
    fn on_event(self: &Rc<Self>, event: Event) {
        let flows = Rc::clone(self);
        match event {
            Event::TcpSyn { flow, key } => drop(spawn_local(async move { flows.serve_tcp(flow, key).await })),
            Event::UdpAssociation { association, key } => {
                drop(spawn_local(async move { flows.serve_udp(association, key).await }));
            }
            Event::Datagram { key, payload } => {
                if self.dns_queries.get() < MAX_DNS_QUERIES {
                    self.dns_queries.set(self.dns_queries.get() + 1);
                    drop(spawn_local(async move { flows.serve_query(key, payload).await }));
                }
            }
            Event::Echo(request) => self.on_echo(request),
        }
    }

    /// Answers for our own addresses; for others the manager has to ask. Over the limit a ping is lost.
    fn on_echo(self: &Rc<Self>, request: EchoRequest) {
        if request.dst == self.resolver.address().ip() {
            self.stack.borrow_mut().reply_echo(request);
        } else if self.echoes.get() < limits::MAX_ECHOES {
            self.echoes.set(self.echoes.get() + 1);
            let flows = Rc::clone(self);
            drop(spawn_local(async move { flows.serve_echo(request).await }));
        }
    }

    async fn serve_echo(&self, request: EchoRequest) {
        let real = self.nat.borrow().real(request.dst.to_canonical());
        match real {
            Some(real) => self.ask_for_echo(request, real).await,
            None => self.stack.borrow_mut().refuse_echo(&request, Unreachable::Host),
        }
        self.echoes.set(self.echoes.get() - 1);
    }

    /// Has the manager ping `real`, which is what the container sees as the destination.
    async fn ask_for_echo(&self, request: EchoRequest, real: IpAddr) {
        let asked = self.tunnel.echo(real, request.payload.clone());
        match timeout(limits::ECHO_TIMEOUT, asked).await {
            Ok(Ok(payload)) => self.stack.borrow_mut().reply_echo(EchoRequest { payload, ..request }),
            Ok(Err(error)) => {
                tracing::debug!(dst = %request.dst, %error, "ping not answered");
                if let Some(reason) = no_echo(error.class()) {
                    self.stack.borrow_mut().refuse_echo(&request, reason);
                }
            }
            Err(_) => {}
        }
    }

    async fn serve_query(&self, key: FlowKey, query: Bytes) {
        if let Some(answer) = self.resolver.answer_datagram(query).await {
            // A full queue drops the answer, as a network would.
            let _ = self.stack.borrow_mut().reply_datagram(key, answer);
        }
        self.dns_queries.set(self.dns_queries.get() - 1);
    }

    async fn serve_tcp(&self, flow: FlowId, key: FlowKey) {
        if key.dst == self.resolver.address() {
            return self.serve_dns_tcp(flow).await;
        }
        let Some(destination) = Destination::of(key.dst, &self.nat) else {
            return self.stack.borrow_mut().refuse(flow, Refusal::Reset);
        };
        let opened = tokio::select! {
            opened = timeout(OPEN_TIMEOUT, self.open(Transport::Tcp, key.src, destination.real)) => opened,
            () = self.reset_by_container(flow) => return self.stack.borrow_mut().close(flow),
        };
        match opened {
            Ok(Ok((tunnel_flow, moving))) => {
                if self.stack.borrow_mut().accept(flow).is_ok() {
                    self.relay_tcp(flow, tunnel_flow, &moving).await;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(dst = %key.dst, %error, "not opened");
                self.stack.borrow_mut().refuse(flow, refusal(error.class()));
            }
            Err(_) => self.stack.borrow_mut().refuse(flow, Refusal::Silence),
        }
    }

    /// TCP to the resolver.
    async fn serve_dns_tcp(&self, flow: FlowId) {
        if self.stack.borrow_mut().accept(flow).is_err() {
            return self.stack.borrow_mut().refuse(flow, Refusal::Reset);
        }
        let mut inbox = BytesMut::new();
        while let Ok(Ok(Some(data))) = timeout(DNS_TCP_IDLE, self.recv(flow)).await {
            inbox.extend_from_slice(&data);
            while let Some(query) = split_dns_message(&mut inbox) {
                let Some(answer) = self.resolver.answer_stream(query).await else { continue };
                let mut framed = BytesMut::with_capacity(2 + answer.len());
                framed.extend_from_slice(&u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes());
                framed.extend_from_slice(&answer);
                if self.send(flow, framed.freeze()).await.is_err() {
                    break;
                }
            }
        }
        self.stack.borrow_mut().close(flow);
    }

    /// Moves bytes until both directions have ended, keeping half-close and resets what they are.
    async fn relay_tcp(&self, flow: FlowId, tunnel_flow: Flow, moving: &Rc<Moving>) {
        let (mut sender, mut receiver) = tunnel_flow.split();
        match self.relay_both(flow, &mut sender, &mut receiver, moving).await {
            Ok(()) => self.stack.borrow_mut().close(flow),
            Err(End::Container(error)) => {
                tracing::debug!(%error, "flow reset by the container");
                self.stack.borrow_mut().abort(flow);
                // Fails only when the lane is gone, and the far end with it.
                if sender.reset(&OpenRefused::new(ErrorClass::Reset, "reset by the client")).is_ok() {
                    // Dropping the receiver now would cancel the stream, and with it what is still to be sent.
                    let _ = timeout(RESET_LINGER, discard(&mut receiver)).await;
                }
            }
            Err(End::Tunnel(tp_tunnel::error::FlowError::Reset(_))) => {
                self.stack.borrow_mut().reset_after_drain(flow);
            }
            Err(End::Tunnel(error)) => {
                tracing::debug!(%error, "flow lost");
                self.stack.borrow_mut().abort(flow);
            }
        }
    }

    async fn relay_both(
        &self,
        flow: FlowId,
        sender: &mut FlowSender,
        receiver: &mut FlowReceiver,
        moving: &Rc<Moving>,
    ) -> Result<(), End> {
        let (mut up_ended, mut down_ended) = (false, false);
        let mut up = pin!(self.relay_up(flow, sender, moving));
        let mut down = pin!(self.relay_down(flow, receiver, moving));
        while !(up_ended && down_ended) {
            tokio::select! {
                ended = &mut up, if !up_ended => match ended {
                    // A far end that takes no more may have answered already: what it sent is delivered to its end.
                    Ok(()) | Err(End::Tunnel(_)) => up_ended = true,
                    Err(error) => return Err(error),
                },
                ended = &mut down, if !down_ended => {
                    ended?;
                    down_ended = true;
                }
                // While the container still sends, its reset comes in order, behind its data.
                () = self.reset_by_container(flow), if up_ended => return Err(End::Container(FlowError::Reset)),
            }
        }
        Ok(())
    }

    async fn relay_up(&self, flow: FlowId, sender: &mut FlowSender, moving: &Rc<Moving>) -> Result<(), End> {
        loop {
            let data = tokio::select! {
                data = self.recv(flow) => data?,
                error = sender.cancelled() => return Err(End::Tunnel(error)),
            };
            let Some(data) = data else {
                return Ok(sender.finish()?);
            };
            self.count_up(data.len(), moving);
            sender.send_all(data).await?;
        }
    }

    async fn relay_down(&self, flow: FlowId, receiver: &mut FlowReceiver, moving: &Rc<Moving>) -> Result<(), End> {
        while let Some(data) = receiver.data().await {
            let data = data?;
            let len = data.len();
            self.send(flow, data).await?;
            receiver.release(len);
            self.count_down(len, moving);
        }
        self.stack.borrow_mut().shutdown_write(flow);
        Ok(())
    }

    async fn serve_udp(&self, association: AssociationId, key: FlowKey) {
        let Some(destination) = Destination::of(key.dst, &self.nat) else {
            return self.stack.borrow_mut().refuse_association(association, Unreachable::Port);
        };
        match timeout(OPEN_TIMEOUT, self.open(Transport::Udp, key.src, destination.real)).await {
            Ok(Ok((flow, moving))) => self.relay_udp(association, flow, &moving).await,
            Ok(Err(error)) => {
                tracing::debug!(dst = %key.dst, %error, "not opened");
                self.stack.borrow_mut().refuse_association(association, unreachable(error.class()));
            }
            Err(_) => self.stack.borrow_mut().close_association(association),
        }
    }

    async fn relay_udp(&self, association: AssociationId, flow: Flow, moving: &Rc<Moving>) {
        let (mut sender, mut receiver) = flow.split();
        let up = async {
            while let Some(payload) = self.recv_datagram(association).await {
                let mut capsule = BytesMut::new();
                datagram::encode(&payload, &mut capsule);
                self.count_up(payload.len(), moving);
                sender.send_all(capsule.freeze()).await?;
            }
            sender.finish()
        };
        let down = async {
            let mut decoder = CapsuleDecoder::default();
            while let Some(data) = receiver.data().await {
                let data = data?;
                receiver.release(data.len());
                decoder.handle_input(&data);
                while let Some(payload) =
                    decoder.poll_datagram().map_err(|_| tp_tunnel::error::FlowError::BadMessage)?
                {
                    self.count_down(payload.len(), moving);
                    // A full queue drops the newest datagram, as a network would.
                    let _ = self.stack.borrow_mut().send_datagram(association, payload);
                }
            }
            Ok::<_, tp_tunnel::error::FlowError>(())
        };
        let ended = tokio::select! {
            ended = up => ended,
            ended = down => ended,
        };
        let mut stack = self.stack.borrow_mut();
        match ended {
            Err(tp_tunnel::error::FlowError::Reset(why)) => {
                stack.refuse_association(association, unreachable(why.class))
            }
            Ok(()) | Err(_) => stack.close_association(association),
        }
    }

    fn count_up(&self, len: usize, moving: &Rc<Moving>) {
        self.traffic.count(&self.traffic.up_bytes, len);
        moving.count(Direction::Up, len);
    }

    fn count_down(&self, len: usize, moving: &Rc<Moving>) {
        self.traffic.count(&self.traffic.down_bytes, len);
        moving.count(Direction::Down, len);
    }

    async fn open(
        &self,
        transport: Transport,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Result<(Flow, Rc<Moving>), FlowOpenError> {
        let open = Open {
            namespace: Some(self.namespace.clone()),
            via: self.egress.via().await,
            deadline: Some(DIAL_TIMEOUT),
            source: Some(src),
            ..Open::new(transport, dst)
        };
        self.tunnel.open(open).await
    }

    async fn recv(&self, flow: FlowId) -> Result<Option<Bytes>, FlowError> {
        poll_fn(|cx| self.stack.borrow_mut().poll_recv(flow, READ_BYTES, cx)).await
    }

    async fn send(&self, flow: FlowId, mut payload: Bytes) -> Result<(), FlowError> {
        poll_fn(|cx| self.stack.borrow_mut().poll_send(flow, &mut payload, cx)).await
    }

    async fn reset_by_container(&self, flow: FlowId) {
        poll_fn(|cx| self.stack.borrow_mut().poll_reset(flow, cx)).await;
    }

    async fn recv_datagram(&self, association: AssociationId) -> Option<Bytes> {
        poll_fn(|cx| self.stack.borrow_mut().poll_recv_datagram(association, cx)).await
    }
}

/// Throws away what the far end still sends.
async fn discard(receiver: &mut FlowReceiver) {
    while let Some(Ok(data)) = receiver.data().await {
        receiver.release(data.len());
    }
}

/// Whether the kernel did not take one packet (malformed in its eyes, or no memory for it), rather than the device having
/// failed. TCP sends it again.
fn is_lost_packet(error: &io::Error) -> bool {
    let lost = [Errno::INVAL, Errno::NOBUFS, Errno::NOMEM];
    lost.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Which side ended a relay early.
enum End {
    Container(FlowError),
    Tunnel(tp_tunnel::error::FlowError),
}

impl From<FlowError> for End {
    fn from(error: FlowError) -> Self {
        Self::Container(error)
    }
}

impl From<tp_tunnel::error::FlowError> for End {
    fn from(error: tp_tunnel::error::FlowError) -> Self {
        Self::Tunnel(error)
    }
}

/// How a SYN is turned down, so that `connect` fails as it would in the pod.
fn refusal(class: ErrorClass) -> Refusal {
    match class {
        ErrorClass::Refused | ErrorClass::Reset | ErrorClass::Failed | ErrorClass::Exhausted => Refusal::Reset,
        ErrorClass::TimedOut => Refusal::Silence,
        ErrorClass::HostUnreachable | ErrorClass::NetUnreachable | ErrorClass::NameNotFound | ErrorClass::Denied => {
            Refusal::Unreachable(unreachable(class))
        }
    }
}

/// The ICMP code of an error class.
fn unreachable(class: ErrorClass) -> Unreachable {
    match class {
        ErrorClass::NetUnreachable => Unreachable::Network,
        ErrorClass::Denied => Unreachable::Prohibited,
        ErrorClass::HostUnreachable | ErrorClass::NameNotFound | ErrorClass::TimedOut => Unreachable::Host,
        ErrorClass::Refused | ErrorClass::Reset | ErrorClass::Failed | ErrorClass::Exhausted => Unreachable::Port,
    }
}

/// What a ping is told that was not answered: what somebody in the cluster said of the address, or nothing.
fn no_echo(class: ErrorClass) -> Option<Unreachable> {
    match class {
        ErrorClass::HostUnreachable | ErrorClass::NetUnreachable | ErrorClass::Denied => Some(unreachable(class)),
        ErrorClass::Refused
        | ErrorClass::Reset
        | ErrorClass::TimedOut
        | ErrorClass::NameNotFound
        | ErrorClass::Exhausted
        | ErrorClass::Failed => None,
    }
}

/// Cuts the next DNS message off a TCP stream (RFC 1035 section 4.2.2: two bytes of length before each).
fn split_dns_message(inbox: &mut BytesMut) -> Option<Bytes> {
    let (len, _) = inbox.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len));
    if inbox.len() < 2 + len {
        return None;
    }
    let mut message = inbox.split_to(2 + len);
    Some(message.split_off(2).freeze())
}
