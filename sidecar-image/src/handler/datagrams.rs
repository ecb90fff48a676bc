//! A flow as datagrams: capsules in both directions.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::limits::MAX_DATAGRAM_BYTES;
use tp_tunnel::error::FlowError;
use tp_tunnel::flow::{Flow, FlowReceiver, FlowSender};

use super::stream::broken;
use crate::engine::destination::Datagrams;

/// A flow that carries datagrams. Dropping it ends the association at the other end as well.
#[derive(Debug)]
pub(crate) struct FlowDatagrams {
    /// Held for one poll at a time, as is the other.
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
}

#[derive(Debug)]
struct Outgoing {
    sender: FlowSender,
    /// Rest of a capsule whose beginning was sent.
    rest: Bytes,
}

#[derive(Debug)]
struct Incoming {
    receiver: FlowReceiver,
    decoder: CapsuleDecoder,
}

impl FlowDatagrams {
    pub(crate) fn new(flow: Flow) -> Self {
        let (sender, receiver) = flow.split();
        Self {
            outgoing: Mutex::new(Outgoing { sender, rest: Bytes::new() }),
            incoming: Mutex::new(Incoming { receiver, decoder: CapsuleDecoder::default() }),
        }
    }
}

impl Datagrams for FlowDatagrams {
    fn poll_send(&self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<usize>> {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        let mut outgoing = lock(&self.outgoing);
        ready!(outgoing.poll_rest(cx)).map_err(broken)?;
        // It is taken when a part of it can go, and the rest follows.
        let capacity = ready!(outgoing.sender.poll_capacity(datagram.len() + CAPSULE_HEADER_BYTES, cx));
        let mut capsule = BytesMut::new();
        datagram::encode(datagram, &mut capsule);
        let mut capsule = capsule.freeze();
        let head = capsule.split_to(capacity.map_err(broken)?.min(capsule.len()));
        outgoing.sender.send(head).map_err(broken)?;
        outgoing.rest = capsule;
        Poll::Ready(Ok(datagram.len()))
    }

    fn poll_recv(&self, cx: &mut Context<'_>, datagram: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever waits for an answer is polled until it is there, so the rest of what is to be answered goes out here.
        if let Poll::Ready(Err(error)) = lock(&self.outgoing).poll_rest(cx) {
            return Poll::Ready(Err(broken(error)));
        }
        let mut incoming = lock(&self.incoming);
        let Incoming { receiver, decoder } = &mut *incoming;
        loop {
            if let Some(payload) = decoder.poll_datagram().map_err(io::Error::other)? {
                // Like a socket, it cuts off what there is no room for.
                let len = payload.len().min(datagram.remaining());
                datagram.put_slice(&payload[..len]);
                return Poll::Ready(Ok(()));
            }
            match ready!(receiver.poll_data(cx)) {
                Some(data) => {
                    let data = data.map_err(broken)?;
                    receiver.release(data.len());
                    decoder.handle_input(&data);
                }
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

/// What a capsule has before its payload, at most: type, length and context.
const CAPSULE_HEADER_BYTES: usize = 6;

impl Outgoing {
    /// Sends what is left of the last capsule.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FlowError>> {
        while !self.rest.is_empty() {
            let len = ready!(self.sender.poll_capacity(self.rest.len(), cx))?;
            self.sender.send(self.rest.split_to(len))?;
        }
        Poll::Ready(Ok(()))
    }
}

fn lock<T>(half: &Mutex<T>) -> MutexGuard<'_, T> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}
