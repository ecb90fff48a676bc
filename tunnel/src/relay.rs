//! Joins a flow to a socket.

use std::io;
use std::net::Shutdown;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until};
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::limits::{self, MAX_DATAGRAM_BYTES};
use tp_protocol::open::OpenRefused;

use crate::error::FlowError;
use crate::flow::{Flow, FlowReceiver, FlowSender};
use crate::read_ahead::{ReadAhead, Share};

/// Bytes read from a socket at once: a frame's worth.
const READ_BYTES: usize = limits::MAX_FRAME_BYTES as usize;

/// Datagrams waiting for the tunnel; newer ones are dropped. 16 x 64 KiB = 1 MiB at worst.
const DATAGRAM_BACKLOG: usize = 16;

/// What a relay moved, and how it ended.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Bytes from the flow to the socket, or from the first flow to the second.
    pub to_socket_bytes: u64,
    /// Bytes from the socket to the flow, or back.
    pub to_flow_bytes: u64,
    /// Datagrams that were dropped because the tunnel was slower than the socket.
    pub dropped_datagrams: u64,
    /// Why it ended, when that was not in good order.
    pub error: Option<OpenRefused>,
}

/// Relays a TCP connection until both directions have ended. Half-close and resets pass in both directions. What is read from
/// the socket counts in `session`'s budget until it has gone out.
pub async fn tcp(flow: Flow, socket: TcpStream, session: &ReadAhead) -> Relayed {
    let mut relayed = Relayed::default();
    // Small writes come from a peer that has already decided to send them.
    let _ = socket.set_nodelay(true);
    let (mut sender, receiver) = flow.split();
    let up = async {
        match flow_to_socket(receiver, &socket, &mut relayed.to_socket_bytes).await {
            // A server that takes no more may have answered already: what it sent is read to its end.
            Err(End::Socket(_)) => Ok(()),
            other => other,
        }
    };
    let share = session.share();
    let down = socket_to_flow(&socket, &mut sender, &share, &mut relayed.to_flow_bytes);
    let ended = tokio::try_join!(up, down);
    match ended {
        Ok(_) => {}
        Err(End::Socket(error)) => {
            let why = OpenRefused::new(ErrorClass::of_io(&error), error.to_string());
            // Fails only when the client is gone as well.
            let _ = sender.reset(&why);
            relayed.error = Some(why);
        }
        Err(End::Flow(error)) => {
            // Closing with a zero linger time sends RST instead of FIN (socket(7), SO_LINGER).
            let _ = socket.set_zero_linger();
            relayed.error = Some(match error {
                FlowError::Reset(why) => why,
                other => OpenRefused::new(ErrorClass::Reset, other.to_string()),
            });
        }
    }
    relayed
}

/// Relays between two flows until both directions have ended. Half-close and resets pass in both directions; datagrams are
/// capsules on either side, so they pass as they are.
pub async fn flows(a: Flow, b: Flow) -> Relayed {
    let mut relayed = Relayed::default();
    let (mut a_sender, mut a_receiver) = a.split();
    let (mut b_sender, mut b_receiver) = b.split();
    let ended = tokio::try_join!(
        pass(&mut a_receiver, &mut b_sender, &mut relayed.to_socket_bytes),
        pass(&mut b_receiver, &mut a_sender, &mut relayed.to_flow_bytes),
    );
    if let Err(error) = ended {
        let why = match error {
            FlowError::Reset(why) => why,
            other => OpenRefused::new(ErrorClass::Reset, other.to_string()),
        };
        // One of the two came from there, and either fails only when that end is gone.
        let _ = a_sender.reset(&why);
        let _ = b_sender.reset(&why);
        relayed.error = Some(why);
    }
    relayed
}

async fn pass(from: &mut FlowReceiver, to: &mut FlowSender, moved: &mut u64) -> Result<(), FlowError> {
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            error = to.cancelled() => return Err(error),
        };
        let Some(data) = data.transpose()? else {
            return to.finish();
        };
        let len = data.len();
        to.send_all(data).await?;
        from.release(len);
        *moved += len as u64;
    }
}

/// Which side ended a relay early.
enum End {
    Socket(io::Error),
    Flow(FlowError),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl From<FlowError> for End {
    fn from(error: FlowError) -> Self {
        Self::Flow(error)
    }
}

async fn flow_to_socket(mut receiver: FlowReceiver, socket: &TcpStream, moved: &mut u64) -> Result<(), End> {
    while let Some(data) = receiver.data().await {
        let data = data?;
        write_all(socket, &data).await?;
        receiver.release(data.len());
        *moved += data.len() as u64;
    }
    Ok(SockRef::from(socket).shutdown(Shutdown::Write)?)
}

async fn write_all(socket: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match socket.try_write(data) {
            Ok(len) => data = &data[len..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn socket_to_flow(
    socket: &TcpStream,
    sender: &mut FlowSender,
    share: &Share,
    moved: &mut u64,
) -> Result<(), End> {
    loop {
        tokio::select! {
            readable = socket.readable() => readable?,
            error = sender.cancelled() => return Err(End::Flow(error)),
        }
        // What the peer has no window for stays in the socket.
        let window = sender.capacity(READ_BYTES).await?;
        let leave = tokio::select! {
            leave = share.leave(window) => leave,
            error = sender.cancelled() => return Err(End::Flow(error)),
        };
        let mut data = Vec::with_capacity(leave.len());
        match socket.try_read_buf(&mut (&mut data).limit(leave.len())) {
            Ok(0) => return Ok(sender.finish()?),
            Ok(len) => {
                *moved += len as u64;
                sender.send(leave.spend(data))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Relays a UDP association over a connected socket until the client ends it or nothing has moved for `idle`.
///
/// An ICMP error (`ECONNREFUSED`) ends it and is passed on.
pub async fn udp(flow: Flow, socket: UdpSocket, idle: Duration) -> Relayed {
    let mut relayed = Relayed::default();
    let (mut sender, mut receiver) = flow.split();
    let mut decoder = CapsuleDecoder::default();
    let mut inbox = vec![0; MAX_DATAGRAM_BYTES];
    let mut backlog = std::collections::VecDeque::<Bytes>::with_capacity(DATAGRAM_BACKLOG);
    let mut deadline = Instant::now() + idle;
    let end = loop {
        let want = backlog.front().map_or(0, Bytes::len);
        tokio::select! {
            data = receiver.data() => match data {
                Some(Ok(data)) => {
                    receiver.release(data.len());
                    decoder.handle_input(&data);
                    match send_datagrams(&socket, &mut decoder, &mut relayed).await {
                        Ok(()) => deadline = Instant::now() + idle,
                        Err(why) => break Some(why),
                    }
                }
                Some(Err(FlowError::Reset(why))) => break Some(why),
                Some(Err(error)) => break Some(OpenRefused::new(ErrorClass::Reset, error.to_string())),
                None => break None,
            },
            received = socket.recv(&mut inbox) => match received {
                Ok(len) => {
                    deadline = Instant::now() + idle;
                    if backlog.len() == DATAGRAM_BACKLOG {
                        relayed.dropped_datagrams += 1;
                    } else {
                        let mut capsule = BytesMut::new();
                        datagram::encode(&inbox[..len], &mut capsule);
                        relayed.to_flow_bytes += len as u64;
                        backlog.push_back(capsule.freeze());
                    }
                }
                Err(error) => break Some(OpenRefused::new(ErrorClass::of_io(&error), error.to_string())),
            },
            capacity = sender.capacity(want), if want > 0 => {
                let sent = capacity.and_then(|len| {
                    let mut capsule = backlog.pop_front().expect("want > 0");
                    let head = capsule.split_to(len);
                    if !capsule.is_empty() {
                        backlog.push_front(capsule);
                    }
                    sender.send(head)
                });
                if let Err(error) = sent {
                    break Some(OpenRefused::new(ErrorClass::Reset, error.to_string()));
                }
            }
            () = sleep_until(deadline) => break None,
        }
    };
    // Fails only when the client is gone.
    let _ = match &end {
        Some(why) => sender.reset(why),
        None => sender.finish(),
    };
    relayed.error = end;
    relayed
}

/// Sends every whole datagram on.
async fn send_datagrams(
    socket: &UdpSocket,
    decoder: &mut CapsuleDecoder,
    relayed: &mut Relayed,
) -> Result<(), OpenRefused> {
    loop {
        match decoder.poll_datagram() {
            Ok(Some(payload)) => match socket.send(&payload).await {
                Ok(_) => relayed.to_socket_bytes += payload.len() as u64,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(OpenRefused::new(ErrorClass::Refused, error.to_string()));
                }
                // One datagram that the network does not take (EMSGSIZE, ENETUNREACH) is one lost datagram.
                Err(_) => relayed.dropped_datagrams += 1,
            },
            Ok(None) => return Ok(()),
            Err(error) => return Err(OpenRefused::new(ErrorClass::Failed, error.to_string())),
        }
    }
}
