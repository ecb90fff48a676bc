//! The CLI's end of the stream to a daemon: the stdio of `tp daemon attach`, run in the daemon's container.

use std::pin::Pin;

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bytes::BytesMut;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tp_protocol::frame;

use super::{Engine, describe, failed};
use crate::attach::{MAX_ATTACH_BYTES, Reply, Request, reply, request};
use crate::error::{CliError, Result};

/// Root, who gives up every right first thing: what `docker exec` starts as another user keeps the container's bounding set.
const DAEMON_USER: &str = "0:0";
/// What is kept of what `tp daemon attach` says on stderr.
const MAX_STDERR_BYTES: usize = 4 << 10;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Requests and replies.
    Talk,
    /// As [`Purpose::Talk`]; besides, what was asked to be held ends with the stream, and only with it: a daemon process
    /// that dies is replaced, and told that the connection is held.
    Hold,
}

/// A stream of requests to a daemon and its replies.
pub(crate) struct DaemonLink {
    engine: Engine,
    exec_id: String,
    container: String,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, ApiError>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    inbox: BytesMut,
    stderr: String,
    answered: bool,
}

impl Engine {
    /// Opens a stream to the daemon in `container`.
    ///
    /// # Errors
    /// When the engine cannot run a process there.
    pub(crate) async fn attach(&self, container: &str, purpose: Purpose) -> Result<DaemonLink> {
        let what = || format!("talk to the daemon in {container}");
        let mut command = vec!["/tp", "daemon", "attach"];
        if purpose == Purpose::Hold {
            command.push("--hold");
        }
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: Some(DAEMON_USER),
            cmd: Some(command),
            ..CreateExecOptions::default()
        };
        let exec_id = self.docker.create_exec(container, options).await.map_err(|e| failed(&what(), &e))?.id;
        let started = self.docker.start_exec(&exec_id, None::<StartExecOptions>).await;
        match started.map_err(|e| failed(&what(), &e))? {
            StartExecResults::Attached { output, input } => Ok(DaemonLink {
                engine: self.clone(),
                exec_id,
                container: container.to_owned(),
                output,
                input,
                inbox: BytesMut::new(),
                stderr: String::new(),
                answered: false,
            }),
            StartExecResults::Detached => Err(CliError::bug("the engine detached a process that was to be attached")),
        }
    }
}

impl DaemonLink {
    /// Sends a request and waits for its final reply; `on_progress` hears what the daemon waits for.
    ///
    /// # Errors
    /// The daemon's own failure, or that the stream ended.
    pub(crate) async fn request(
        &mut self,
        kind: request::Kind,
        mut on_progress: impl FnMut(&str),
    ) -> Result<reply::Kind> {
        let mut outbox = BytesMut::new();
        frame::encode(&Request { kind: Some(kind) }, &mut outbox);
        let sent = async {
            self.input.write_all(&outbox).await?;
            self.input.flush().await
        };
        if let Err(e) = sent.await {
            // What the process had to say comes with the end of its output.
            while self.receive().await?.is_some() {}
            return Err(self.broken().await.because(&e));
        }
        loop {
            match self.receive().await? {
                Some(reply::Kind::Progress(progress)) => on_progress(&progress.text),
                Some(reply::Kind::Failure(failure)) => return Err(failure.into()),
                Some(
                    reply @ (reply::Kind::Done(_)
                    | reply::Kind::Status(_)
                    | reply::Kind::Subnets(_)
                    | reply::Kind::Answer(_)),
                ) => return Ok(reply),
                None => return Err(self.broken().await),
            }
        }
    }

    /// Whether the daemon has answered anything on this stream.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered
    }

    /// The next reply; `None` at the end of the stream. Replies of kinds that this release does not know are skipped.
    async fn receive(&mut self) -> Result<Option<reply::Kind>> {
        loop {
            let reply = frame::decode::<Reply>(&mut self.inbox, MAX_ATTACH_BYTES).map_err(|e| {
                CliError::user(format!("the daemon in {} does not speak tp's protocol: {e}", self.container))
                    .hint("its version may be another: `tp quit` and connect again")
            })?;
            match reply {
                Some(Reply { kind: Some(kind) }) => {
                    self.answered = true;
                    return Ok(Some(kind));
                }
                Some(Reply { kind: None }) => continue,
                None => {}
            }
            match self.output.next().await {
                Some(Ok(LogOutput::StdErr { message })) => {
                    let room = MAX_STDERR_BYTES.saturating_sub(self.stderr.len()).min(message.len());
                    self.stderr.push_str(&String::from_utf8_lossy(&message[..room]));
                }
                Some(Ok(other)) => self.inbox.extend_from_slice(&other.into_bytes()),
                Some(Err(e)) => {
                    return Err(CliError::user(format!(
                        "lost the stream to the daemon in {}: {}",
                        self.container,
                        describe(&e)
                    ))
                    .because(&e));
                }
                None => return Ok(None),
            }
        }
    }

    /// The stream ended before the reply: says why, as far as the engine knows.
    async fn broken(&self) -> CliError {
        let code = self.engine.docker.inspect_exec(&self.exec_id).await.ok().and_then(|exec| exec.exit_code);
        let mut error = CliError::user(match code {
            Some(code) if code != 0 => {
                format!("the stream to the daemon in {} ended before its answer (exit code {code})", self.container)
            }
            _ => format!("the stream to the daemon in {} ended before its answer", self.container),
        });
        let said = self.stderr.trim();
        if !said.is_empty() {
            error = error.detail(said);
        }
        error
    }
}
