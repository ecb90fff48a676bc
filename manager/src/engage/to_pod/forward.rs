//! A port-forward of the API server, in a WebSocket, and the relay between it and a flow.
//!
//! The sub-protocol is `v4.channel.k8s.io`: each message is one byte of channel number and the channel's bytes. One forwarded
//! port has two channels, 0 for data and 1 for errors; the first message on each is the port (two bytes, little endian).
//! Source: kubelet's streaming server, `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`.
//!
//! There is no half-close. When the pod has closed, the client is told, and what it still sends is thrown away. When the client
//! has, the pod's answer is waited for until nothing comes for [`LINGER`]; only then does the pod see the end.

use std::future::pending;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;
use tp_tunnel::error::FlowError;
use tp_tunnel::flow::{Flow, FlowReceiver, FlowSender};
use tp_tunnel::relay::Relayed;

/// How long an end that is done waits for the other one, which may not know it.
const LINGER: Duration = Duration::from_secs(10);

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// The WebSocket of a port-forward.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A port of a pod.
#[derive(Debug)]
pub(crate) struct PodForward<IO = TokioIo<Upgraded>> {
    socket: WebSocketStream<IO>,
    port: u16,
    /// It counts among the connections of its engagement, and of all.
    _permits: [OwnedSemaphorePermit; 2],
}

/// Why a relay ended early.
enum End {
    Pod(OpenRefused),
    Flow(FlowError),
}

impl From<tungstenite::Error> for End {
    fn from(error: tungstenite::Error) -> Self {
        Self::Pod(OpenRefused::new(ErrorClass::Reset, format!("the port-forward was lost: {error}")))
    }
}

impl From<FlowError> for End {
    fn from(error: FlowError) -> Self {
        Self::Flow(error)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> PodForward<IO> {
    pub(super) fn new(socket: WebSocketStream<IO>, port: u16, permits: [OwnedSemaphorePermit; 2]) -> Self {
        Self { socket, port, _permits: permits }
    }

    /// Relays between the pod and a flow until one of them is done. A reset by the pod, or that nothing listens there, is a
    /// reset of the flow.
    pub(crate) async fn relay(self, flow: Flow) -> Relayed {
        let mut relayed = Relayed::default();
        let (mut to_pod, mut from_pod) = self.socket.split();
        let (mut sender, mut receiver) = flow.split();
        let up_ended = CancellationToken::new();
        let up = async {
            match flow_to_pod(&mut receiver, &mut to_pod, &mut relayed.to_socket_bytes).await {
                // A pod that takes no more may have answered already: what it sent is read to its end.
                Ok(()) | Err(End::Pod(_)) => up_ended.cancel(),
                Err(error) => return Err(error),
            }
            pending().await
        };
        let down = pod_to_flow(&mut from_pod, &mut sender, self.port, &up_ended, &mut relayed.to_flow_bytes);
        let ended = tokio::select! {
            ended = up => ended,
            ended = down => ended,
        };
        // From here on each fails only when the client is gone.
        relayed.error = match ended {
            Ok(()) => {
                let _ = sender.finish();
                // A client that has not ended yet does so when it sees this.
                let _ = timeout(LINGER, receiver.data()).await;
                None
            }
            Err(End::Pod(why)) => {
                let _ = sender.reset(&why);
                Some(why)
            }
            Err(End::Flow(FlowError::Reset(why))) => Some(why),
            Err(End::Flow(error)) => Some(OpenRefused::new(ErrorClass::Reset, error.to_string())),
        };
        // Either side may be gone.
        let _ = timeout(LINGER, to_pod.close()).await;
        relayed
    }
}

/// Carries what the client sends until it has ended its direction.
async fn flow_to_pod<IO: AsyncRead + AsyncWrite + Unpin>(
    from: &mut FlowReceiver,
    to: &mut SplitSink<WebSocketStream<IO>, Message>,
    moved: &mut u64,
) -> Result<(), End> {
    while let Some(data) = from.data().await.transpose()? {
        // As at the end of the stream: a message is to have a byte.
        if data.is_empty() {
            continue;
        }
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(DATA);
        message.put_slice(&data);
        to.send(Message::Binary(message.freeze())).await?;
        from.release(data.len());
        *moved += data.len() as u64;
    }
    Ok(())
}

/// Carries what the pod sends until it has closed, or says nothing any more and is not spoken to either.
async fn pod_to_flow<IO: AsyncRead + AsyncWrite + Unpin>(
    from: &mut SplitStream<WebSocketStream<IO>>,
    to: &mut FlowSender,
    port: u16,
    up_ended: &CancellationToken,
    moved: &mut u64,
) -> Result<(), End> {
    // Whether the first message of the channel, the port, has come.
    let mut announced = [false; 2];
    loop {
        let message = tokio::select! {
            message = from.next() => message.transpose()?,
            error = to.cancelled() => return Err(error.into()),
            () = linger(up_ended) => return Ok(()),
        };
        let payload = match message {
            Some(Message::Binary(payload)) => payload,
            Some(Message::Text(text)) => text.into(),
            Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Some(Message::Close(_)) | None => return Ok(()),
        };
        if let Some(data) = data_of(payload, port, &mut announced).map_err(End::Pod)? {
            let len = data.len() as u64;
            to.send_all(data).await?;
            *moved += len;
        }
    }
}

/// Returns when the other direction has ended and [`LINGER`] is over.
async fn linger(up_ended: &CancellationToken) {
    up_ended.cancelled().await;
    sleep(LINGER).await;
}

/// Takes a message apart: bytes of the port, or nothing for the client; an error when the kubelet reports one.
fn data_of(mut message: Bytes, port: u16, announced: &mut [bool; 2]) -> Result<Option<Bytes>, OpenRefused> {
    let odd = |what: &str| OpenRefused::new(ErrorClass::Failed, format!("the port-forward sent {what}"));
    if message.is_empty() {
        return Err(odd("a message without a channel"));
    }
    let channel = message.split_to(1)[0];
    let announced = announced.get_mut(usize::from(channel)).ok_or_else(|| odd("data on an unknown channel"))?;
    if !std::mem::replace(announced, true) {
        return match message[..] == port.to_le_bytes() {
            true => Ok(None),
            false => Err(odd("another port's data")),
        };
    }
    match channel {
        ERROR => Err(reported(&message)),
        _ => Ok(Some(message)),
    }
}

/// The kubelet's words, which say what became of its own dial.
fn reported(text: &[u8]) -> OpenRefused {
    let text = String::from_utf8_lossy(text).trim().to_owned();
    let class = if text.contains("connection refused") { ErrorClass::Refused } else { ErrorClass::Reset };
    OpenRefused::new(class, text)
}

#[cfg(test)]
mod tests;
