//! The connection to the manager: made, kept, and made again. Orders come over it, and handlers are reached over it.
//!
//! The CA and the token are read anew for each attempt: the manager may not have made the one yet, and the kubelet
//! renews the other.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::control::{FromManager, Goodbye, ToManager};
use tp_protocol::engage::call::AgentState;
use tp_protocol::hello::{AgentIdentity, ClientHello};
use tp_tunnel::client::{self, Connected};
use tp_tunnel::control::{ControlReceiver, ControlSender};
use tp_tunnel::error::{FlowError, FlowOpenError, LaneError};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::orders::Duties;
use crate::{VERSION, dial};

/// Longest wait for TCP, and then for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// At the end, longest wait for the manager to have read the goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// After the manager has said goodbye, longest that what is under way over the connection may take. The manager has a limit
/// of its own.
const LEAVING_MAX: Duration = Duration::from_secs(60);

/// How often the manager is told what has changed since its last orders.
const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a manager that is there may be silent about engagements, until there are none: in the workload's own pods it gives orders
/// only while there are any. One that has just started has taken them up by then.
const ORDERS_WAIT: Duration = Duration::from_secs(30);

/// Largest token or CA file: far above both, and below what a wrong path could do.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A connection could not be made, or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConnectionError {
    /// The CA is not there yet.
    #[error("no CA in {0}: the manager puts it into the ConfigMap tp-manager-ca when it starts")]
    NoCa(PathBuf),
    /// The token is not there yet.
    #[error("no token in {0}: the pod needs a projected service account token of the audience tp-manager")]
    NoToken(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The CA file holds no usable certificate.
    #[error("the CA in {path} is not usable: {problem}")]
    BadCa {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Name lookup or TCP failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// TLS failed: not the manager, or its CA is another by now.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The manager did not let the agent in, or the lane was lost.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The control channel was not opened.
    #[error(transparent)]
    Control(#[from] FlowOpenError),
    /// The control channel was lost.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// The manager said goodbye.
    #[error("the manager said goodbye: {0}")]
    Goodbye(String),
    /// The manager closed the lane.
    #[error("the manager closed the connection")]
    Closed,
}

/// Keeps the agent registered until `stop` is cancelled, then says goodbye. Has `duties` be carried out meanwhile.
pub(crate) async fn keep(config: &Config, duties: &mut Duties, stop: &CancellationToken) {
    // Connections to managers that have said goodbye. One that is gone is left at once, so there are a few at most.
    let mut leaving = JoinSet::new();
    let mut backoff = Backoff::default();
    let mut last = String::new();
    loop {
        let started = Instant::now();
        let error = tokio::select! {
            connected = connect(config) => match connected {
                Ok(lane) => match stay(lane, duties, &mut leaving, stop).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            },
            () = stop.cancelled() => return,
        };
        while leaving.try_join_next().is_some() {}
        let wait = backoff.on_failure(started.elapsed(), random());
        let text = error.to_string();
        // The same failure again and again is one message: the pod's log is its owner's.
        if text == last {
            tracing::debug!(%error, retry_in = ?wait, "not connected to the manager");
        } else {
            tracing::warn!(%error, retry_in = ?wait, "not connected to the manager");
            last = text;
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes TLS and says hello.
async fn connect(config: &Config) -> Result<Connected, ConnectionError> {
    let io = tls(config).await?;
    let hello = hello(config)?;
    Ok(client::connect(io, &hello).await?)
}

async fn tls(config: &Config) -> Result<TlsStream<TcpStream>, ConnectionError> {
    let connector = TlsConnector::from(Arc::new(trust(&config.ca_file)?));
    let (host, port) = (config.manager.host.as_str(), config.manager.port);
    let address = format!("{host}:{port}");
    let connect = |source| ConnectionError::Connect { address: address.clone(), source };
    let socket = within(TcpStream::connect((host, port))).await.map_err(connect)?;
    // Both ends of a lane decide themselves when to send.
    socket.set_nodelay(true).map_err(connect)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| connect(io::Error::other(error)))?;
    within(connector.connect(name, socket)).await.map_err(|source| ConnectionError::Tls { address, source })
}

/// Bounds a step of connecting.
async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(CONNECT_TIMEOUT, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Trusts the certificates in `path` and nothing else.
fn trust(path: &Path) -> Result<ClientConfig, ConnectionError> {
    let pem = read(path, ConnectionError::NoCa)?;
    let bad = |problem: &dyn fmt::Display| ConnectionError::BadCa { path: path.into(), problem: problem.to_string() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    if roots.is_empty() {
        return Err(bad(&"no certificate in it"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error: rustls::Error| bad(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Says who this agent is. The token is read for each hello, since the kubelet renews it.
fn hello(config: &Config) -> Result<ClientHello, ConnectionError> {
    let token = read(&config.token_file, ConnectionError::NoToken)?;
    let identity =
        AgentIdentity { namespace: config.namespace.clone(), pod: config.pod.clone(), token: token.trim().to_owned() };
    let name = format!("{}/{}", config.namespace, config.pod);
    Ok(ClientHello { agent: Some(identity), ..ClientHello::new(VERSION, &name) })
}

/// Reads a file; `absent` when there is none, or nothing in it yet.
fn read(path: &Path, absent: fn(PathBuf) -> ConnectionError) -> Result<String, ConnectionError> {
    let unreadable = |source| ConnectionError::Unreadable { path: path.into(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent(path.into())),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(unreadable(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    if text.trim().is_empty() { Err(absent(path.into())) } else { Ok(text) }
}

/// Stays registered until `stop` is cancelled; an error when the connection ends before. One whose manager has said goodbye
/// goes to `leaving`.
async fn stay(
    connected: Connected,
    duties: &mut Duties,
    leaving: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Result<(), ConnectionError> {
    let Connected { welcome, lane, mut driver, .. } = connected;
    let (dials, mut dialled) = (duties.dials(), JoinSet::new());
    let talk = async {
        let (mut sender, mut receiver) = lane.control().await?.split();
        tracing::info!(
            manager = welcome.manager_pod,
            version = welcome.software_version,
            "registered with the manager"
        );
        let _in_use = duties.lane().put(lane.clone());
        talk(&mut sender, &mut receiver, duties, stop).await
    };
    let ended = tokio::select! {
        ended = talk => ended,
        ended = &mut driver => return Err(ended.err().map_or(ConnectionError::Closed, ConnectionError::Lane)),
        never = dial::run(&lane, dials, &mut dialled) => match never {},
    };
    // Without a lane that could open more, the driver ends with what is under way, and closes the connection in good order.
    drop(lane);
    match &ended {
        Ok(()) => _ = timeout(GOODBYE_TIMEOUT, driver).await,
        Err(ConnectionError::Goodbye(_)) => {
            leaving.spawn(async move {
                let _ = timeout(LEAVING_MAX, driver).await;
                drop(dialled);
            });
        }
        Err(_) => {}
    }
    ended
}

/// Answers pings and carries out orders until `stop` is cancelled, then says goodbye.
async fn talk(
    sender: &mut ControlSender,
    receiver: &mut ControlReceiver,
    duties: &mut Duties,
    stop: &CancellationToken,
) -> Result<(), ConnectionError> {
    // What the manager was told last. Before its first orders, which it numbers, it would mean nothing.
    let mut told = None;
    let mut silence = pin!(sleep(ORDERS_WAIT));
    let mut is_silent = true;
    let mut changes = interval(STATE_INTERVAL);
    changes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = receiver.recv::<FromManager>() => match message {
                None => return Err(ConnectionError::Closed),
                Some(message) => match message?.kind {
                    Some(From::Ping(ping)) => sender.send(&ToManager::from(To::Pong(ping))).await?,
                    Some(From::Goodbye(goodbye)) => return Err(ConnectionError::Goodbye(goodbye.reason)),
                    Some(From::Orders(orders)) => {
                        is_silent = false;
                        duties.carry_out(&orders);
                        tell(sender, &mut told, duties.state()).await?;
                        changes.reset();
                    }
                    Some(From::TellEnvironment(_)) => {
                        sender.send(&ToManager::from(To::Environment(duties.environment()))).await?;
                    }
                    // For clients, or of a later version.
                    Some(From::ClusterInfo(_) | From::Agents(_) | From::Engagements(_)) | None => {}
                },
            },
            () = &mut silence, if is_silent => {
                is_silent = false;
                duties.forget();
            }
            _ = changes.tick(), if told.is_some() => {
                let state = duties.state();
                if told.as_ref() != Some(&state) {
                    tell(sender, &mut told, state).await?;
                }
            }
            () = stop.cancelled() => {
                let goodbye = Goodbye { reason: "the pod stops".to_owned() };
                sender.send(&ToManager::from(To::Goodbye(goodbye))).await?;
                sender.finish()?;
                // Dropped before the manager has read it, the stream would be cancelled, and the goodbye lost.
                let _ = timeout(GOODBYE_TIMEOUT, async {
                    while let Some(Ok(_)) = receiver.recv::<FromManager>().await {}
                })
                .await;
                return Ok(());
            }
        }
    }
}

/// Tells the manager what has become of its orders.
async fn tell(sender: &mut ControlSender, told: &mut Option<AgentState>, state: AgentState) -> Result<(), FlowError> {
    sender.send(&ToManager::from(To::AgentState(state.clone()))).await?;
    *told = Some(state);
    Ok(())
}

/// Returns a random number, good enough for jitter: the standard library seeds its hash maps from the system.
fn random() -> u16 {
    let bits = RandomState::new().hash_one(0);
    u16::try_from(bits & 0xffff).expect("the other bits are masked")
}

#[cfg(test)]
mod tests {
    use tp_protocol::control::Ping;
    use tp_protocol::hello::{Refusal, RefusalCode};
    use tp_tunnel::server;

    use super::*;
    use crate::stage::{Stage, drive};

    #[tokio::test]
    async fn the_agent_says_who_it_is_and_answers_pings() {
        let stage = Stage::new().await;
        stage
            .play(async {
                let pending = stage.accept().await;
                let identity = pending.hello.agent.clone().unwrap();
                assert_eq!((&*identity.namespace, &*identity.pod, &*identity.token), ("shop", "web-1", "the-token"));
                assert_eq!(pending.hello.software_version, VERSION);
                drop(pending);
                let (mut lane, control) = stage.welcome().await;
                let (mut sender, mut receiver) = control.split();
                let pong = drive(&mut lane, async {
                    sender.send(&FromManager::from(From::Ping(Ping { number: 7 }))).await.unwrap();
                    receiver.recv::<ToManager>().await.unwrap().unwrap()
                })
                .await;
                assert_eq!(pong.kind, Some(To::Pong(Ping { number: 7 })));
            })
            .await;
    }

    #[tokio::test]
    async fn the_agent_comes_back_with_the_token_that_is_there_then() {
        let stage = Stage::new().await;
        stage
            .play(async {
                let (lane, control) = stage.welcome().await;
                std::fs::write(&stage.config.token_file, "renewed").unwrap();
                drop((lane, control));
                assert_eq!(stage.accept().await.hello.agent.unwrap().token, "renewed");
            })
            .await;
    }

    #[tokio::test]
    async fn a_refused_agent_tries_again() {
        let stage = Stage::new().await;
        stage
            .play(async {
                let refusal = Refusal::new(RefusalCode::Unauthenticated, "not this pod", "0.1.0");
                stage.accept().await.refuse(refusal).await.unwrap();
                stage.welcome().await;
            })
            .await;
    }

    #[tokio::test]
    async fn told_to_stop_the_agent_says_goodbye_and_ends() {
        let stage = Stage::new().await;
        let manager = async {
            let (mut lane, control) = stage.welcome().await;
            let (_sender, mut receiver) = control.split();
            stage.stop.cancel();
            drive(&mut lane, async { receiver.recv::<ToManager>().await.unwrap().unwrap() }).await
        };
        let ((), message) = tokio::join!(stage.agent(), manager);
        assert!(matches!(message.kind, Some(To::Goodbye(_))), "{message:?}");
    }

    #[tokio::test]
    async fn the_agent_waits_for_its_files() {
        let stage = Stage::new().await;
        let ca = std::fs::read(&stage.config.ca_file).unwrap();
        std::fs::remove_file(&stage.config.ca_file).unwrap();
        std::fs::write(&stage.config.token_file, "").unwrap();
        assert!(matches!(connect(&stage.config).await, Err(ConnectionError::NoCa(_))));
        std::fs::write(&stage.config.ca_file, ca).unwrap();
        let (connected, accepted) = tokio::join!(connect(&stage.config), async {
            let (socket, _) = stage.listener.accept().await.unwrap();
            server::accept(stage.acceptor.accept(socket).await.unwrap()).await
        });
        assert!(matches!(connected, Err(ConnectionError::NoToken(_))) && accepted.is_err());
    }

    #[tokio::test]
    async fn another_ca_is_not_trusted() {
        let stage = Stage::new().await;
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&stage.config.ca_file, other.cert.pem()).unwrap();
        let (connected, _) = tokio::join!(connect(&stage.config), async {
            let (socket, _) = stage.listener.accept().await.unwrap();
            stage.acceptor.accept(socket).await.map(drop)
        });
        assert!(matches!(connected, Err(ConnectionError::Tls { .. })));
        std::fs::write(&stage.config.ca_file, "garbage").unwrap();
        assert!(matches!(connect(&stage.config).await, Err(ConnectionError::BadCa { .. })));
    }
}
