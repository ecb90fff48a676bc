//! The end of a lane that carries out opens: the manager.

use std::future::poll_fn;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::{Builder, Connection, SendResponse};
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use tp_protocol::echo;
use tp_protocol::engage::dial::{self, Dial};
use tp_protocol::engage::reach::{self, Arrival};
use tp_protocol::engage::{EngagementId, call};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, Refusal, ServerHello, Welcome};
use tp_protocol::lane::{Direction, stream_window_bytes};
use tp_protocol::limits;
use tp_protocol::open::{FLOW, Open, OpenRefused, Transport, UDP_PROTOCOL};

use crate::carrier::{Carrier, LaneHandle, LaneStream};
use crate::control::Control;
use crate::error::{FlowError, LaneError, OfferError};
use crate::flow::{Continuation, Flow, read_to_end};
use crate::handshake;

/// Target of a DNS query (RFC 8484).
pub(crate) const DNS_URI: &str = "https://tp-manager/dns-query";

/// Media type of a DNS message (RFC 8484 section 6).
pub(crate) const DNS_MEDIA_TYPE: &str = "application/dns-message";

/// Target of the control channel.
pub(crate) const CONTROL_URI: &str = "https://tp-manager/tp.v1/control";

/// Target of a flow that goes on.
pub(crate) const CONTINUE_URI: &str = "https://tp-manager/tp.v1/continue";

/// Path of a call.
const CALL_PATH: &str = "/tp.v1/engagements";

/// Target of a call.
pub(crate) const CALL_URI: &str = "https://tp-manager/tp.v1/engagements";

/// Media type of calls and their answers.
pub(crate) const CALL_MEDIA_TYPE: &str = "application/protobuf";

/// How long a stream that was reset is remembered, so that frames still under way to it are no error.
pub(crate) const RESET_MEMORY: Duration = Duration::from_secs(10);

/// A lane whose hello was read and not answered yet.
pub struct Pending {
    /// What the client said.
    pub hello: ClientHello,
    io: Box<dyn Carrier>,
}

/// A lane that was let in.
pub struct LaneServer {
    connection: Connection<LaneStream, Bytes>,
    handle: LaneHandle,
}

/// What the client asks for on a new stream.
#[derive(Debug)]
pub enum Incoming {
    /// Dial this and connect it to the flow.
    Open(Open, Responder),
    /// The flow of this number, opened on another lane of the session, goes on here.
    Continue(u64, ContinueResponder),
    /// Ask the cluster's DNS.
    Resolve(MessageRequest),
    /// Ping this.
    Echo(IpAddr, MessageRequest),
    /// A client is ready to take a connection that arrives for this engagement.
    Accept(EngagementId, Acceptor),
    /// An agent is ready to dial for a client.
    Dial(Acceptor),
    /// An agent has a connection for this engagement.
    Reach(EngagementId, Arrival, Responder),
    /// A client asks something about engagements ([`tp_protocol::engage::call`]).
    Call(MessageRequest),
    /// The control channel.
    Control(Control),
}

/// Answers an open.
#[derive(Debug)]
pub struct Responder {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
}

/// A stream that a client has open for a connection that arrives, or an agent for one that it is to dial.
#[derive(Debug)]
pub struct Acceptor {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
}

/// Answers a flow that is to go on.
#[derive(Debug)]
pub struct ContinueResponder {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
}

/// A request whose message is still to be read: a DNS message, or the data of a ping.
#[derive(Debug)]
pub struct MessageRequest {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    message_bytes_max: usize,
    media_type: &'static str,
}

/// Answers a [`MessageRequest`].
#[derive(Debug)]
pub struct MessageResponder {
    respond: SendResponse<Bytes>,
    media_type: &'static str,
}

/// Reads the hello of a client or an agent.
///
/// # Errors
/// [`LaneError`] when the peer does not speak the protocol or takes too long.
pub async fn accept(io: impl Carrier + 'static) -> Result<Pending, LaneError> {
    let (hello, io) = handshake::receive(io).await?;
    Ok(Pending { hello, io: Box::new(io) })
}

impl Pending {
    /// Tells the peer why it may not come in, and closes the lane.
    ///
    /// # Errors
    /// [`LaneError`] when the peer is gone already.
    pub async fn refuse(mut self, refusal: Refusal) -> Result<(), LaneError> {
        handshake::send(&mut self.io, &ServerHello::from(refusal)).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut self.io).await?;
        Ok(())
    }

    /// Lets the peer in and starts HTTP/2.
    ///
    /// # Errors
    /// [`LaneError`] when the lane fails first.
    pub async fn welcome(mut self, welcome: Welcome) -> Result<LaneServer, LaneError> {
        let is_resumable = welcome.resume_grace_ms > 0;
        handshake::send(&mut self.io, &ServerHello::from(welcome)).await?;
        let (stream, handle) = LaneStream::new(self.io, is_resumable);
        let handshake = Builder::new()
            .initial_window_size(stream_window_bytes(self.hello.lane, Direction::Up))
            .initial_connection_window_size(limits::LANE_WINDOW_BYTES)
            .max_frame_size(limits::MAX_FRAME_BYTES)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
            .max_concurrent_streams(limits::MAX_STREAMS_PER_LANE)
            .max_concurrent_reset_streams(limits::MAX_STREAMS_PER_LANE as usize)
            .max_pending_accept_reset_streams(limits::MAX_STREAMS_PER_LANE as usize)
            .max_local_error_reset_streams(None)
            .reset_stream_duration(RESET_MEMORY)
            .enable_connect_protocol()
            .handshake(stream);
        let connection = tokio::time::timeout(handshake::HELLO_TIMEOUT, handshake)
            .await
            .map_err(|_| LaneError::TimedOut(handshake::HELLO_TIMEOUT))??;
        Ok(LaneServer { connection, handle })
    }

    /// Carries the lane of `handle` over to this byte stream. The client said in its hello how much it has received, and
    /// is told in the welcome how much we have.
    ///
    /// # Errors
    /// [`LaneError`] when the byte stream fails first, or the lane is over.
    pub async fn resume(mut self, welcome: Welcome, handle: &LaneHandle) -> Result<(), LaneError> {
        let peer_received = self.hello.resume_received.unwrap_or_default();
        let received = handle.detach("the client came back");
        let welcome = Welcome { resume_received: Some(received), ..welcome };
        handshake::send(&mut self.io, &ServerHello::from(welcome)).await?;
        handle.attach(self.io, peer_received)
    }
}

impl LaneServer {
    /// Tells when the byte stream below is lost, and gives the lane another one.
    pub fn handle(&self) -> &LaneHandle {
        &self.handle
    }

    /// Moves the lane's bytes and returns what the client asks for next; `None` when the lane has ended.
    ///
    /// Must be called in a loop: nothing on the lane moves otherwise. Cancel-safe.
    ///
    /// # Errors
    /// [`LaneError`] when the lane is lost.
    pub async fn next(&mut self) -> Option<Result<Incoming, LaneError>> {
        loop {
            let (request, respond) = match self.connection.accept().await? {
                Ok(accepted) => accepted,
                Err(error) => return Some(Err(error.into())),
            };
            if let Some(incoming) = classify(request, respond) {
                return Some(Ok(incoming));
            }
        }
    }

    /// Lets the client open nothing more and ends the lane when its flows have ended. Keep calling [`Self::next`].
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }
}

/// Sorts a request; one that is not of this protocol is answered here.
fn classify(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Incoming> {
    let (parts, recv) = request.into_parts();
    let refused = match (&parts.method, parts.uri.path()) {
        (&Method::CONNECT, _) => match Open::from_parts(&parts) {
            Ok(open) if open.transport == Transport::Tcp || is_udp(&parts) => {
                return Some(Incoming::Open(open, Responder { respond, recv }));
            }
            Ok(_) => OpenRefused::new(ErrorClass::Failed, "unknown :protocol"),
            Err(error) => OpenRefused::new(ErrorClass::Failed, error.to_string()),
        },
        (&Method::POST, "/tp.v1/continue") => match parts.headers.get(FLOW).map(|flow| flow.to_str().map(str::parse)) {
            Some(Ok(Ok(flow))) => {
                return Some(Incoming::Continue(flow, ContinueResponder { respond, recv }));
            }
            _ => OpenRefused::new(ErrorClass::Failed, "a flow that goes on needs its number"),
        },
        (&Method::POST, "/dns-query") => {
            let (message_bytes_max, media_type) = (limits::MAX_DNS_BYTES, DNS_MEDIA_TYPE);
            return Some(Incoming::Resolve(MessageRequest { respond, recv, message_bytes_max, media_type }));
        }
        (&Method::POST, path) if let Some(dst) = echo::parse_path(path) => {
            let (message_bytes_max, media_type) = (limits::MAX_DATAGRAM_BYTES, echo::MEDIA_TYPE);
            return Some(Incoming::Echo(dst, MessageRequest { respond, recv, message_bytes_max, media_type }));
        }
        (&Method::POST, CALL_PATH) => {
            let (message_bytes_max, media_type) = (call::MAX_CALL_BYTES, CALL_MEDIA_TYPE);
            return Some(Incoming::Call(MessageRequest { respond, recv, message_bytes_max, media_type }));
        }
        (&Method::POST, path) if let Some(id) = reach::parse_path(path, reach::ACCEPT_PATH) => {
            return Some(Incoming::Accept(id, Acceptor { respond, recv }));
        }
        (&Method::POST, path) if let Some(id) = reach::parse_path(path, reach::REACH_PATH) => {
            match Arrival::from_headers(&parts.headers) {
                Ok(arrival) => return Some(Incoming::Reach(id, arrival, Responder { respond, recv })),
                Err(error) => OpenRefused::new(ErrorClass::Failed, error.to_string()),
            }
        }
        (&Method::POST, dial::DIAL_PATH) => return Some(Incoming::Dial(Acceptor { respond, recv })),
        (&Method::POST, "/tp.v1/control") => {
            let send = respond.send_response(Response::new(()), false).ok()?;
            return Some(Incoming::Control(Control::new(send, recv)));
        }
        (method, path) => OpenRefused::new(ErrorClass::Failed, format!("unknown request {method} {path}")),
    };
    refuse(&mut respond, &refused, StatusCode::NOT_FOUND);
    None
}

fn is_udp(parts: &http::request::Parts) -> bool {
    parts.extensions.get::<Protocol>().is_some_and(|p| p.as_str() == UDP_PROTOCOL)
}

fn refuse(respond: &mut SendResponse<Bytes>, refused: &OpenRefused, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    refused.write_headers(response.headers_mut());
    // Fails only when the client has cancelled the stream, so nobody waits for the answer.
    let _ = respond.send_response(response, true);
}

impl Responder {
    /// Says that the far end has accepted.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the client has given up meanwhile.
    pub fn accept(mut self) -> Result<Flow, FlowError> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Flow::new(send, self.recv))
    }

    /// Says why the far end was not reached.
    pub fn refuse(mut self, refused: &OpenRefused) {
        refuse(&mut self.respond, refused, refused.status());
    }

    /// Resolves when the client gives up before it was answered.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

impl Acceptor {
    /// Hands the client a connection, and waits until its handler has accepted.
    ///
    /// # Errors
    /// [`OfferError`]: what the client says, or that it is gone.
    pub async fn offer(self, arrival: &Arrival) -> Result<Flow, OfferError> {
        let mut response = Response::new(());
        arrival.write_headers(response.headers_mut());
        self.hand_over(response).await
    }

    /// Has the agent dial, and waits until the far end has accepted.
    ///
    /// # Errors
    /// [`OfferError`]: what the agent says, or that it is gone.
    pub async fn dial(self, dial: &Dial) -> Result<Flow, OfferError> {
        let mut response = Response::new(());
        dial.write_headers(response.headers_mut());
        self.hand_over(response).await
    }

    async fn hand_over(mut self, response: Response<()>) -> Result<Flow, OfferError> {
        let send = self.respond.send_response(response, false).map_err(|error| OfferError::Gone(error.into()))?;
        let (sender, mut receiver) = Flow::new(send, self.recv).split();
        match receiver.data().await {
            Some(Ok(data)) if data[..] == [reach::CONNECTED] => {
                receiver.release(data.len());
                Ok(Flow::join(sender, receiver))
            }
            Some(Err(FlowError::Reset(why))) => Err(why.into()),
            Some(Err(error)) => Err(OfferError::Gone(error)),
            Some(Ok(_)) | None => Err(OfferError::Gone(FlowError::BadMessage)),
        }
    }

    /// Says that the engagement is over, or that there are too many of these.
    pub fn refuse(mut self, refused: &OpenRefused) {
        refuse(&mut self.respond, refused, refused.status());
    }

    /// Resolves when the client takes it back.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

impl ContinueResponder {
    /// The flow goes on here.
    pub fn accept(mut self, continuation: Continuation) {
        // Fails only when the client has cancelled the stream, and with it the flow.
        if let Ok(send) = self.respond.send_response(Response::new(()), false) {
            continuation.go_on(send, self.recv);
        }
    }

    /// There is no such flow (any more).
    pub fn refuse(mut self) {
        let refused = OpenRefused::new(ErrorClass::Failed, "the session has no such flow");
        refuse(&mut self.respond, &refused, StatusCode::NOT_FOUND);
    }
}

impl MessageRequest {
    /// Reads the message.
    ///
    /// # Errors
    /// [`FlowError`] when it is too long or the client has given up.
    pub async fn message(self) -> Result<(Bytes, MessageResponder), FlowError> {
        let message = read_to_end(self.recv, self.message_bytes_max).await?;
        Ok((message, MessageResponder { respond: self.respond, media_type: self.media_type }))
    }

    /// Says why there is no answer, without reading the message.
    pub fn refuse(mut self, refused: &OpenRefused) {
        refuse(&mut self.respond, refused, refused.status());
    }
}

impl MessageResponder {
    /// Resolves when the client gives up before it was answered.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Sends the message that answers.
    pub fn answer(mut self, message: Bytes) {
        let response = Response::builder().header(CONTENT_TYPE, self.media_type).body(());
        // Fails only when the client has given up meanwhile.
        if let Ok(mut send) = self.respond.send_response(response.expect("made of constants"), false) {
            let _ = send.send_data(message, true);
        }
    }

    /// Says why there is no answer.
    pub fn refuse(mut self, refused: &OpenRefused) {
        refuse(&mut self.respond, refused, refused.status());
    }
}
