//! The daemon's end of the link to its init, and what it inherits.
#![expect(unsafe_code, reason = "taking over inherited descriptors")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tp_protocol::frame;

use super::child::{LINK_FD, LISTENER_FD, TUN_FD};
pub(crate) use super::messages::NetworkConfig;
use super::messages::{FromInit, MAX_INIT_BYTES, ToInit, from_init, to_init};
use super::privileges;
pub(crate) use super::resolv_conf::ResolvConf;
use crate::daemon::tun::Tun;

/// The variable of the container that sets what the daemon logs.
pub(crate) const LOG_VARIABLE: &str = "TP_LOG_LEVEL";

/// Asks the init for what the daemon may not do itself.
#[derive(Debug)]
pub(crate) struct InitLink {
    stream: UnixStream,
    inbox: BytesMut,
}

/// What a daemon process starts with.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// The way back to the init.
    pub(crate) link: InitLink,
    /// The control socket, listening.
    pub(crate) listener: UnixListener,
    /// The TUN device.
    pub(crate) tun: Tun,
    /// resolv.conf as the engine made it.
    pub(crate) resolv_conf: ResolvConf,
    /// What the process before this one saved.
    pub(crate) state: Option<Vec<u8>>,
    /// Daemon processes that died before this one.
    pub(crate) restarts: u32,
}

/// Takes over the descriptors and hears what the init remembers. Once in the life of a process, before it opens anything.
///
/// # Errors
/// When the process was not started by the init.
pub(crate) async fn inherit() -> io::Result<Inherited> {
    privileges::drop_all()?;
    let stream = StdStream::from(take(LINK_FD)?);
    stream.set_nonblocking(true)?;
    let mut link = InitLink { stream: UnixStream::from_std(stream)?, inbox: BytesMut::new() };
    let listener = UnixListener::from_std(StdListener::from(take(LISTENER_FD)?))?;
    let tun = Tun::inherit(take(TUN_FD)?)?;
    let Some(from_init::Kind::Restore(restore)) = link.receive().await? else {
        return Err(io::Error::other("the init did not say what to start with"));
    };
    Ok(Inherited {
        link,
        listener,
        tun,
        resolv_conf: ResolvConf::parse(&restore.original_resolv_conf),
        state: restore.state,
        restarts: restore.restarts,
    })
}

/// Takes over one inherited descriptor.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether the number is in use.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::other("`tp daemon run` is started by `tp daemon init` only"));
    }
    // SAFETY: the init put it there for us, and it is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl InitLink {
    /// Has the network set up. The init gives up its rights with that: it works once.
    ///
    /// # Errors
    /// The init's reason.
    pub(crate) async fn configure(&mut self, config: &NetworkConfig) -> io::Result<()> {
        self.request(to_init::Kind::Configure(config.clone())).await
    }

    /// Has `state` remembered for the next daemon process.
    ///
    /// # Errors
    /// The init's reason.
    pub(crate) async fn save_state(&mut self, state: &[u8]) -> io::Result<()> {
        self.request(to_init::Kind::SaveState(state.to_vec())).await
    }

    async fn request(&mut self, kind: to_init::Kind) -> io::Result<()> {
        let mut outbox = BytesMut::new();
        frame::encode(&ToInit { kind: Some(kind) }, &mut outbox);
        self.stream.write_all(&outbox).await?;
        match self.receive().await? {
            Some(from_init::Kind::Done(_)) => Ok(()),
            Some(from_init::Kind::Failed(reason)) => Err(io::Error::other(reason)),
            Some(from_init::Kind::Restore(_)) | None => Err(io::Error::other("the init answered out of turn")),
        }
    }

    async fn receive(&mut self) -> io::Result<Option<from_init::Kind>> {
        loop {
            if let Some(FromInit { kind }) = frame::decode(&mut self.inbox, MAX_INIT_BYTES).map_err(io::Error::other)? {
                return Ok(kind);
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
