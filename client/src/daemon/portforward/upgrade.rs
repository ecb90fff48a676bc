//! The request for a port-forward: an HTTP request that becomes a WebSocket (RFC 6455 section 4).

use http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::{Body, UpgradeConnectionError};
use kube::core::Status;
use kube::{Client, Error};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::channels::Channels;
use super::spdy::Spdy;
use super::{Framing, PortForward};

const SPDY: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";

/// Which sub-protocols the server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Channels: answers come sooner, and more of them.
    Channels,
    /// SPDY, for uploads; an API server that does not know it passes the request on to the kubelet, which takes channels.
    Spdy,
}

impl Offer {
    fn header(self) -> String {
        match self {
            Self::Channels => CHANNELS.to_owned(),
            Self::Spdy => format!("{SPDY}, {CHANNELS}"),
        }
    }
}

/// Opens `port` of a pod.
///
/// # Errors
/// What the API server says, and what kept us from asking it.
pub(crate) async fn open(
    client: &Client,
    offer: Offer,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<PortForward<TokioIo<Upgraded>>, Error> {
    let key = generate_key();
    // The SPDY streams name the port themselves; that it is in the query as well shows it to admission.
    let request = Request::get(format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}"))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, offer.header())
        .body(Body::empty())
        .map_err(Error::HttpError)?;
    let response = client.send(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let framing = verify(response.headers(), &key, port).map_err(Error::UpgradeConnection)?;
    let upgraded = hyper::upgrade::on(response).await;
    let upgraded = upgraded.map_err(|e| Error::UpgradeConnection(UpgradeConnectionError::GetPendingUpgrade(e)))?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    Ok(PortForward::new(socket, framing))
}

/// Why there is no WebSocket: a `Status`, or what something on the way has to say.
async fn refused(response: Response<Body>) -> Error {
    let code = response.status();
    if !code.is_client_error() && !code.is_server_error() {
        return Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code));
    }
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return error,
    };
    let status = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Status::failure(String::from_utf8_lossy(&body).trim(), "Unknown").with_code(code.as_u16()));
    Error::Api(status.boxed())
}

/// Checks the server's half of the handshake.
fn verify(headers: &HeaderMap, key: &str, port: u16) -> Result<Framing, UpgradeConnectionError> {
    let is = |name: HeaderName, value: &str| {
        headers.get(name).is_some_and(|given| given.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    if !is(UPGRADE, "websocket") {
        return Err(UpgradeConnectionError::MissingUpgradeWebSocketHeader);
    }
    if !is(CONNECTION, "upgrade") {
        return Err(UpgradeConnectionError::MissingConnectionUpgradeHeader);
    }
    if headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|given| given != derive_accept_key(key.as_bytes()).as_str()) {
        return Err(UpgradeConnectionError::SecWebSocketAcceptKeyMismatch);
    }
    if is(SEC_WEBSOCKET_PROTOCOL, SPDY) {
        Ok(Framing::Spdy(Spdy::new(port)))
    } else if is(SEC_WEBSOCKET_PROTOCOL, CHANNELS) {
        Ok(Framing::Channels(Channels::default()))
    } else {
        Err(UpgradeConnectionError::SecWebSocketProtocolMismatch)
    }
}
