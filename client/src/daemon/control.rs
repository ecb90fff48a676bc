//! The daemon's side of the control socket: requests of CLIs, one stream each.

use std::io;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;
use tp_protocol::frame;

use crate::attach::{Empty, Failure, MAX_ATTACH_BYTES, Progress, Reply, Request, Subnets, reply, request};
use crate::daemon::Daemon;
use crate::daemon::lifetime::End;

/// Serves every CLI that comes, for as long as the daemon lives.
pub(crate) async fn listen(daemon: Rc<Daemon>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Rc::clone(&daemon);
                drop(spawn_local(async move {
                    if let Err(error) = serve(&daemon, stream).await {
                        tracing::debug!(%error, "a command's stream broke");
                    }
                }));
            }
            Err(error) => {
                // Out of descriptors, say: the next one may fare better, but not at once.
                tracing::warn!(%error, "cannot accept a command's stream");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Says what is being waited for, to the CLI that waits.
pub(crate) struct Replies {
    stream: OwnedWriteHalf,
}

impl Replies {
    /// Tells the CLI what is being waited for.
    ///
    /// # Errors
    /// When the CLI is gone.
    pub(crate) async fn progress(&mut self, text: &str) -> io::Result<()> {
        self.send(reply::Kind::Progress(Progress { text: text.to_owned() })).await
    }

    async fn send(&mut self, kind: reply::Kind) -> io::Result<()> {
        let mut outbox = BytesMut::new();
        frame::encode(&Reply { kind: Some(kind) }, &mut outbox);
        self.stream.write_all(&outbox).await
    }
}

async fn serve(daemon: &Rc<Daemon>, stream: UnixStream) -> io::Result<()> {
    let (mut requests, stream) = stream.into_split();
    let mut replies = Replies { stream };
    let mut inbox = BytesMut::new();
    let mut holder = None;
    while let Some(Request { kind }) = receive(&mut requests, &mut inbox).await? {
        let outcome = match kind {
            Some(request::Kind::Connect(connect)) => {
                if connect.hold {
                    holder = Some(daemon.hold());
                }
                tokio::select! {
                    outcome = daemon.connect(*connect, &mut replies) => outcome.map(|status| reply::Kind::Status(Box::new(status))),
                    // A CLI that goes away while it waits takes what it began with it.
                    () = until_end(&mut requests, &mut inbox) => return Ok(()),
                }
            }
            Some(request::Kind::Status(_)) => Ok(reply::Kind::Status(Box::new(daemon.status()))),
            Some(request::Kind::Detach(_)) => {
                daemon.detach().await;
                holder = None;
                Ok(done())
            }
            Some(request::Kind::Hold(_)) => {
                holder = Some(daemon.hold());
                daemon.save().await;
                Ok(done())
            }
            Some(request::Kind::NewSubnets(_)) => {
                Ok(reply::Kind::Subnets(Subnets { subnets: daemon.new_subnets().await }))
            }
            Some(request::Kind::Routed(Subnets { subnets })) => daemon.on_routed(&subnets).await.map(|()| done()),
            Some(request::Kind::Engagements(ask)) => tokio::select! {
                answer = daemon.ask_manager(&ask) => answer.map(|answer| reply::Kind::Answer(Box::new(answer))),
                // A CLI that goes away does not want it any more.
                () = until_end(&mut requests, &mut inbox) => return Ok(()),
            },
            Some(request::Kind::Quit(_)) => {
                daemon.quit().await;
                let told = replies.send(done()).await;
                daemon.end(End::Quit);
                return told;
            }
            None => Err(Failure {
                message: "the daemon does not know this request".into(),
                hint: format!(
                    "the daemon is tp {}: run `tp quit` and connect again with this tp",
                    env!("CARGO_PKG_VERSION")
                ),
                causes: Vec::new(),
            }),
        };
        replies.send(outcome.unwrap_or_else(reply::Kind::Failure)).await?;
    }
    drop(holder);
    Ok(())
}

fn done() -> reply::Kind {
    reply::Kind::Done(Empty {})
}

/// Reads the next request; `None` when the CLI has ended the stream.
async fn receive(stream: &mut OwnedReadHalf, inbox: &mut BytesMut) -> io::Result<Option<Request>> {
    loop {
        if let Some(request) = frame::decode(inbox, MAX_ATTACH_BYTES).map_err(io::Error::other)? {
            return Ok(Some(request));
        }
        if stream.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
    }
}

/// Reads ahead into `inbox` until the stream ends or fails: a CLI that waits for a reply sends nothing.
async fn until_end(stream: &mut OwnedReadHalf, inbox: &mut BytesMut) {
    while inbox.len() < MAX_ATTACH_BYTES && stream.read_buf(inbox).await.is_ok_and(|len| len > 0) {}
}
