//! `tp daemon attach`, which `docker exec` runs in the daemon container: joins its stdio to the control socket.
//!
//! The daemon process may be restarted by its init meanwhile. The listening socket survives that, so a stream that holds
//! the connection (`--hold`) is made again and says so; any other stream ends with the process that it talked to.

use std::process::ExitCode;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Stdin, Stdout, copy};
use tokio::net::UnixStream;
use tp_protocol::frame;

use crate::attach::{Empty, MAX_ATTACH_BYTES, Reply, Request, request};
use crate::daemon::init::CONTROL_SOCKET;

/// Whether the stream holds the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Requests and replies.
    Talk,
    /// The connection ends with this stream.
    Hold,
}

/// Runs until the CLI's end of stdin, or until the daemon ends the stream.
pub(crate) async fn run(purpose: Purpose) -> ExitCode {
    let mut stdin = tokio::io::stdin();
    let mut stdout = tokio::io::stdout();
    let mut socket = match UnixStream::connect(CONTROL_SOCKET).await {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("cannot reach the daemon: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        let ended = join(&mut stdin, &mut stdout, socket).await;
        if ended == Ended::Cli || purpose == Purpose::Talk {
            return ExitCode::SUCCESS;
        }
        socket = match hold_again().await {
            Ok(socket) => socket,
            Err(_) => return ExitCode::SUCCESS,
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Cli,
    Daemon,
}

async fn join(stdin: &mut Stdin, stdout: &mut Stdout, mut socket: UnixStream) -> Ended {
    let (mut from_daemon, mut to_daemon) = socket.split();
    let up = async {
        let copied = copy(stdin, &mut to_daemon).await;
        // The daemon may be gone first, which is not the CLI's end.
        match copied {
            Ok(_) => Ended::Cli,
            Err(_) => Ended::Daemon,
        }
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(8192);
        loop {
            buffer.clear();
            match from_daemon.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ended::Daemon,
                Ok(_) => {}
            }
            if stdout.write_all(&buffer).await.is_err() || stdout.flush().await.is_err() {
                return Ended::Cli;
            }
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// Tells the next daemon process that the connection is still held.
async fn hold_again() -> std::io::Result<UnixStream> {
    let mut socket = UnixStream::connect(CONTROL_SOCKET).await?;
    let mut outbox = BytesMut::new();
    frame::encode(&Request { kind: Some(request::Kind::Hold(Empty {})) }, &mut outbox);
    socket.write_all(&outbox).await?;
    let mut inbox = BytesMut::new();
    while frame::decode::<Reply>(&mut inbox, MAX_ATTACH_BYTES).map_err(std::io::Error::other)?.is_none() {
        if socket.read_buf(&mut inbox).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(socket)
}
