//! A one-time port: a listener on the pod's loopback, for one claim that is good.

use std::io;
use std::net::Ipv4Addr;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout};
use tp_protocol::engage::call::Failure;
use tp_protocol::frame::{self, FrameError};
use tp_protocol::hello::SessionKey;
use tp_protocol::identity::{self, CLAIM_TIMEOUT, Claim, PORT_LIFE, verdict};

use super::claims::Unproven;
use super::{Identities, User, now};
use crate::engage::failure;
use crate::session::SessionId;

/// Connections at once to one port. Its owner makes one; whoever else comes has no use for it.
const AT_ONCE: usize = 4;

/// A port that waits.
pub(super) struct Door {
    identities: Identities,
    listener: TcpListener,
    port: u16,
    until: Instant,
}

/// A connection that was no claim.
#[derive(Debug, thiserror::Error)]
enum DoorError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("nothing was claimed within {CLAIM_TIMEOUT:?}")]
    TimedOut,
}

impl Door {
    /// Listens on a free port of the loopback, as the clients' port does, and has it wait for `session`.
    pub(super) async fn open(identities: &Identities, session: &SessionId) -> Result<(Self, u16), Failure> {
        let no_room = |error| failure(format!("{error}"), "try again in half a minute");
        identities.claims().has_room(session, now()).map_err(no_room)?;
        let bound = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let port = listener.local_addr()?.port();
            Ok::<_, io::Error>((listener, port))
        };
        let (listener, port) = bound.await.map_err(|error| failure(format!("no port is free: {error}"), ""))?;
        let until = Instant::now() + PORT_LIFE;
        identities.claims().open(port, session, now()).map_err(no_room)?;
        Ok((Self { identities: identities.clone(), listener, port, until }, port))
    }

    /// Serves until the session is bound to its user. The port stays taken until its time is over, so that its number is
    /// nobody else's meanwhile.
    pub(super) async fn serve(self) {
        let mut talks = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if talks.len() < AT_ONCE => match accepted {
                    Ok((socket, _)) => talks.push(self.talk(socket)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        break;
                    }
                },
                Some(talked) = talks.next() => match talked {
                    Ok(true) => break,
                    // Somebody else's; whose port it is may come yet.
                    Ok(false) => {}
                    Err(error) => tracing::info!(port = self.port, %error, "no claim came to a one-time port"),
                },
                () = sleep_until(self.until) => {
                    tracing::info!(port = self.port, "whose one-time port it was did not come");
                    break;
                }
            }
        }
        drop(talks);
        sleep_until(self.until).await;
    }

    /// Takes one claim and answers it; true when the session is bound.
    async fn talk(&self, mut io: impl AsyncRead + AsyncWrite + Unpin) -> Result<bool, DoorError> {
        let exchange = async {
            let claim = receive(&mut io).await?;
            let decided = self.decide(claim.session.unwrap_or_default());
            let is_bound = decided.is_ok();
            let kind = match decided {
                Ok(user) => verdict::Kind::Identified(user.to_message()),
                Err(failure) => verdict::Kind::Failure(failure),
            };
            let mut outbox = BytesMut::new();
            frame::encode(&identity::Verdict::from(kind), &mut outbox);
            io.write_all(&outbox).await?;
            io.shutdown().await?;
            Ok(is_bound)
        };
        timeout(CLAIM_TIMEOUT, exchange).await.unwrap_or(Err(DoorError::TimedOut))
    }

    /// Binds the session to the one user who was named for the port.
    fn decide(&self, key: SessionKey) -> Result<std::sync::Arc<User>, Failure> {
        let Identities { shared } = &self.identities;
        let session = SessionId::from(&*key.id);
        if !shared.hub.holds(&key) {
            tracing::warn!(%session, port = self.port, "somebody came to a one-time port without the session's secret");
            return Err(failure("this is not the secret of a session of this manager", ""));
        }
        let user = self.identities.claims().take(self.port, &session, now()).map_err(|why| {
            tracing::warn!(%session, port = self.port, ?why, "session not identified");
            match why {
                Unproven::NotYours => failure("the port was not opened for this session, or its time is over", "try again"),
                Unproven::Nobody => {
                    shared.unheard.notify_one();
                    failure(
                        "the API server did not tell the traffic manager who you are: its webhook was not called",
                        "an administrator checks that the API server reaches port 7444 of the pod tp-manager-0, or sets the \
                         chart's value authorization to port-forward-only",
                    )
                }
                Unproven::Several => failure(
                    "the traffic manager was told two names for this connection, and believes neither",
                    "try again; an administrator finds both in the manager's log",
                ),
            }
        })?;
        if !shared.hub.identify(&key, &user) {
            return Err(failure("the session has ended meanwhile", ""));
        }
        tracing::info!(%session, user = user.name, "session identified");
        Ok(user)
    }
}

/// Reads the one message that a client sends.
async fn receive(io: &mut (impl AsyncRead + Unpin)) -> Result<Claim, DoorError> {
    let mut inbox = BytesMut::new();
    loop {
        if let Some(claim) = frame::decode(&mut inbox, identity::MAX_MESSAGE_BYTES)? {
            return Ok(claim);
        }
        if io.read_buf(&mut inbox).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
