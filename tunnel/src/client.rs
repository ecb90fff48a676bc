//! The end of a lane that opens flows: a workstation's daemon, or a traffic agent.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::ext::Protocol;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use prost::Message;
use tp_protocol::echo;
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{Answer, Call, MAX_CALL_BYTES};
use tp_protocol::engage::dial::{DIAL_URI, Dial};
use tp_protocol::engage::reach::{self, Arrival, ArrivalError};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, ServerHello, Welcome, server_hello};
use tp_protocol::lane::{Direction, stream_window_bytes};
use tp_protocol::limits;
use tp_protocol::open::{FLOW, Open, OpenRefused, Transport, UDP_PROTOCOL};

use crate::carrier::{Carrier, LaneHandle, LaneStream};
use crate::control::Control;
use crate::error::{FlowError, FlowOpenError, LaneError};
use crate::flow::{Continuation, Flow, FlowReceiver, read_to_end};
use crate::handshake;
use crate::server::{CALL_MEDIA_TYPE, CALL_URI, CONTINUE_URI, CONTROL_URI, DNS_MEDIA_TYPE, DNS_URI, RESET_MEMORY};

/// Opens flows on one lane. Clones share the lane; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Lane {
    requests: SendRequest<Bytes>,
}

/// Drives the lane. Nothing moves unless it is polled; it ends with the lane.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), LaneError>> + Send>>;

/// A byte stream on which the manager has welcomed us, and nothing was said since.
pub struct Admitted {
    /// What the manager said.
    pub welcome: Welcome,
    io: Box<dyn Carrier>,
    /// Number of the lane.
    lane: u32,
}

/// A lane that runs.
pub struct Connected {
    /// What the manager said.
    pub welcome: Welcome,
    /// Opens flows.
    pub lane: Lane,
    /// Must be polled (spawned) for anything to happen.
    pub driver: Driver,
    /// Tells when the byte stream below is lost, and gives the lane another one.
    pub handle: LaneHandle,
}

/// Says hello on `io` and starts a lane on it, as [`say_hello`] and [`Admitted::start`] do.
///
/// # Errors
/// [`LaneError::Refused`] with the manager's reason, or why the lane could not be made.
pub async fn connect(io: impl Carrier + 'static, hello: &ClientHello) -> Result<Connected, LaneError> {
    say_hello(io, hello).await?.start().await
}

/// Says hello on `io` and waits for the welcome.
///
/// # Errors
/// [`LaneError::Refused`] with the manager's reason, or why there was no answer.
pub async fn say_hello(mut io: impl Carrier + 'static, hello: &ClientHello) -> Result<Admitted, LaneError> {
    handshake::send(&mut io, hello).await?;
    let (answer, io) = handshake::receive::<ServerHello, _>(io).await?;
    match answer.outcome {
        Some(server_hello::Outcome::Welcome(welcome)) => Ok(Admitted { welcome, io: Box::new(io), lane: hello.lane }),
        Some(server_hello::Outcome::Refusal(refusal)) => Err(LaneError::Refused(refusal)),
        None => Err(LaneError::EmptyHello),
    }
}

/// A connection that has arrived for an engagement, or that is to be dialled, and waits for an answer.
#[derive(Debug)]
pub struct Arrived<A = Arrival> {
    /// Which port, and who connects; or what to dial.
    pub arrival: A,
    flow: Flow,
}

/// How long a refusal may take to be read.
const REFUSAL_LINGER: Duration = Duration::from_secs(5);

impl Admitted {
    /// Starts a new lane: HTTP/2 from its beginning.
    ///
    /// # Errors
    /// Why it could not be made.
    pub async fn start(self) -> Result<Connected, LaneError> {
        let (stream, handle) = LaneStream::new(self.io, self.welcome.resume_grace_ms > 0);
        let (requests, connection) = Builder::new()
            .initial_window_size(stream_window_bytes(self.lane, Direction::Down))
            .initial_connection_window_size(limits::LANE_WINDOW_BYTES)
            .max_frame_size(limits::MAX_FRAME_BYTES)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
            .max_concurrent_reset_streams(limits::MAX_STREAMS_PER_LANE as usize)
            .max_pending_accept_reset_streams(limits::MAX_STREAMS_PER_LANE as usize)
            .max_local_error_reset_streams(None)
            .reset_stream_duration(RESET_MEMORY)
            .enable_push(false)
            .handshake(stream)
            .await?;
        let driver = Box::pin(async { Ok(connection.await?) });
        Ok(Connected { welcome: self.welcome, lane: Lane { requests }, driver, handle })
    }

    /// Carries the lane of `handle` over to this byte stream, when the manager still has its end of it
    /// ([`Welcome::resume_received`]). Returns what the manager said.
    ///
    /// # Errors
    /// Why the lane is over.
    pub fn resume(self, handle: &LaneHandle) -> Result<Welcome, LaneError> {
        handle.attach(self.io, self.welcome.resume_received.unwrap_or_default())?;
        Ok(self.welcome)
    }
}

impl Lane {
    /// Opens a flow and waits until the far end has accepted it.
    ///
    /// Dropping the future cancels the dial.
    ///
    /// # Errors
    /// [`FlowOpenError::Refused`] with the class to show the socket that asked, or why nothing could be asked.
    pub async fn open(&self, open: &Open) -> Result<Flow, FlowOpenError> {
        let mut request = open.to_request()?;
        if open.transport == Transport::Udp {
            request.extensions_mut().insert(Protocol::from_static(UDP_PROTOCOL));
        }
        let (response, send) = self.requests.clone().ready().await?.send_request(request, false)?;
        let recv = check(response.await?)?;
        Ok(Flow::new(send, recv))
    }

    /// Has a flow of another lane of the session go on on this one: the flow that was opened with number `flow`.
    ///
    /// # Errors
    /// [`FlowOpenError`]: it stays where it is.
    pub async fn carry_on(&self, flow: u64, continuation: Continuation) -> Result<(), FlowOpenError> {
        let request = Request::post(CONTINUE_URI).header(FLOW, flow).body(()).expect("made of a constant and a number");
        let (response, send) = self.requests.clone().ready().await?.send_request(request, false)?;
        let recv = check(response.await?)?;
        continuation.go_on(send, recv);
        Ok(())
    }

    /// Waits for a connection that arrives for an engagement of this session. Several calls can wait at once.
    ///
    /// # Errors
    /// [`FlowOpenError`] when the engagement is over, or the lane is gone.
    pub async fn accept(&self, id: &EngagementId) -> Result<Arrived, FlowOpenError> {
        self.wait(reach::accept_uri(id).map_err(|_| bad_id(id))?, Arrival::from_headers).await
    }

    /// Waits for something that an agent is to dial. Several calls can wait at once.
    ///
    /// # Errors
    /// [`FlowOpenError`] when the manager has enough of these, or the lane is gone.
    pub async fn wait_for_dial(&self) -> Result<Arrived<Dial>, FlowOpenError> {
        self.wait(Uri::from_static(DIAL_URI), Dial::from_headers).await
    }

    /// Opens a stream and waits until the manager has something for it, which `read` reads.
    async fn wait<A>(
        &self,
        uri: Uri,
        read: fn(&HeaderMap) -> Result<A, ArrivalError>,
    ) -> Result<Arrived<A>, FlowOpenError> {
        let request = Request::post(uri).body(()).expect("made of a URI");
        let (response, send) = self.requests.clone().ready().await?.send_request(request, false)?;
        let response = response.await?;
        let arrival = read(response.headers());
        let recv = check(response)?;
        let arrival = arrival.map_err(|_| FlowOpenError::BadAnswer(StatusCode::OK))?;
        Ok(Arrived { arrival, flow: Flow::new(send, recv) })
    }

    /// Brings a connection to the client that holds an engagement, and waits until its handler has accepted.
    ///
    /// Dropping the future gives it up.
    ///
    /// # Errors
    /// [`FlowOpenError::Refused`] with what the handler's socket said, or why the client was not reached.
    pub async fn reach(&self, id: &EngagementId, arrival: &Arrival) -> Result<Flow, FlowOpenError> {
        let request = Request::post(reach::reach_uri(id).map_err(|_| bad_id(id))?).body(());
        let mut request = request.expect("made of a URI");
        arrival.write_headers(request.headers_mut());
        let (response, send) = self.requests.clone().ready().await?.send_request(request, false)?;
        let recv = check(response.await?)?;
        Ok(Flow::new(send, recv))
    }

    /// Asks the manager something about engagements.
    ///
    /// # Errors
    /// [`FlowOpenError`] when there was no answer.
    pub async fn call(&self, call: &Call) -> Result<Answer, FlowOpenError> {
        let uri = Uri::from_static(CALL_URI);
        let answer = self.ask(uri, CALL_MEDIA_TYPE, call.encode_to_vec().into(), MAX_CALL_BYTES).await?;
        Answer::decode(answer).map_err(|_| FlowOpenError::BadAnswer(StatusCode::OK))
    }

    /// Asks the cluster's DNS. `query` and the answer are DNS messages (RFC 1035).
    ///
    /// # Errors
    /// [`FlowOpenError`] when the manager or the cluster's DNS gave no answer.
    pub async fn resolve(&self, query: Bytes) -> Result<Bytes, FlowOpenError> {
        self.ask(Uri::from_static(DNS_URI), DNS_MEDIA_TYPE, query, limits::MAX_DNS_BYTES).await
    }

    /// Has the manager ping `dst` with `data`, and returns the data of the reply.
    ///
    /// # Errors
    /// [`FlowOpenError`] when there was no reply.
    pub async fn echo(&self, dst: IpAddr, data: Bytes) -> Result<Bytes, FlowOpenError> {
        self.ask(echo::to_uri(dst), echo::MEDIA_TYPE, data, limits::MAX_DATAGRAM_BYTES).await
    }

    /// Sends one message and returns the one that answers it.
    async fn ask(
        &self,
        uri: Uri,
        media_type: &'static str,
        message: Bytes,
        answer_bytes_max: usize,
    ) -> Result<Bytes, FlowOpenError> {
        let request = Request::post(uri).header(CONTENT_TYPE, media_type).body(()).expect("made of constants");
        let (response, mut send) = self.requests.clone().ready().await?.send_request(request, false)?;
        send.send_data(message, true)?;
        let recv = check(response.await?)?;
        read_to_end(recv, answer_bytes_max).await.map_err(|error| match error {
            FlowError::Cancelled(error) => FlowOpenError::Lane(error),
            FlowError::Reset(why) => FlowOpenError::Refused(why),
            FlowError::Frame(_) | FlowError::BadMessage | FlowError::Stranded => {
                FlowOpenError::BadAnswer(StatusCode::OK)
            }
        })
    }

    /// Opens the control channel, once per session, on lane 0.
    ///
    /// # Errors
    /// [`FlowOpenError`] when the manager does not open it.
    pub async fn control(&self) -> Result<Control, FlowOpenError> {
        let request = Request::builder().method(Method::POST).uri(CONTROL_URI).body(()).expect("made of constants");
        let (response, send) = self.requests.clone().ready().await?.send_request(request, false)?;
        let recv = check(response.await?)?;
        Ok(Control::new(send, recv))
    }
}

impl<A> Arrived<A> {
    /// The handler, or the far end, has accepted.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the connection is gone already.
    pub fn connected(self) -> Result<Flow, FlowError> {
        let (mut sender, receiver) = self.flow.split();
        sender.send(Bytes::from_static(&[reach::CONNECTED]))?;
        Ok(Flow::join(sender, receiver))
    }

    /// The handler, or the far end, was not reached.
    pub fn refuse(self, why: &OpenRefused) {
        let (mut sender, receiver) = self.flow.split();
        // Fails only when the connection is gone already.
        if sender.reset(why).is_ok() {
            // Dropping the receiver cancels the stream, and with it the reason.
            tokio::spawn(linger(receiver));
        }
    }
}

/// Waits for the manager to have read what was sent.
async fn linger(mut receiver: FlowReceiver) {
    let to_end = async {
        while let Some(Ok(data)) = receiver.data().await {
            receiver.release(data.len())
        }
    };
    let _ = tokio::time::timeout(REFUSAL_LINGER, to_end).await;
}

fn bad_id(id: &EngagementId) -> FlowOpenError {
    OpenRefused::new(ErrorClass::Failed, format!("`{id}` cannot be part of a path")).into()
}

/// Turns any status but 200 into the refusal that its headers describe.
fn check(response: Response<h2::RecvStream>) -> Result<h2::RecvStream, FlowOpenError> {
    if response.status() == StatusCode::OK {
        return Ok(response.into_body());
    }
    match OpenRefused::from_headers(response.headers()) {
        Some(refused) => Err(refused.into()),
        None => Err(FlowOpenError::BadAnswer(response.status())),
    }
}
