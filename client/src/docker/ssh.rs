//! Engines behind `ssh://`: each connection is `ssh HOST docker system dial-stdio`, as the docker CLI does it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard::errors::Error as ApiError;
use bollard::{BollardRequest, ClientVersion, Docker};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Requests carry some host; the one behind ssh is not looked at.
const ANY_HOST: &str = "http://docker.invalid";

/// A client whose connections go through the ssh program.
pub(super) fn connect(url: &str, limit_secs: u64, version: &ClientVersion) -> Result<Docker, ApiError> {
    let dialer = Dialer { args: Arc::new(ssh_args(url)?) };
    let client = Client::builder(TokioExecutor::new()).build(dialer);
    let client = Arc::new(client);
    Docker::connect_with_custom_transport(
        move |request: BollardRequest| {
            let client = Arc::clone(&client);
            async move { client.request(request).await.map_err(ApiError::from) }
        },
        Some(ANY_HOST),
        limit_secs,
        version,
    )
}

/// The arguments of ssh for `ssh://[USER@]HOST[:PORT]`.
fn ssh_args(url: &str) -> io::Result<Vec<String>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{url}` is not ssh://[USER@]HOST[:PORT]"));
    let uri: http::Uri = url.parse().map_err(|_| bad())?;
    let host = uri.host().filter(|host| !host.is_empty() && !host.starts_with('-')).ok_or_else(bad)?;
    let user = uri.authority().and_then(|a| a.as_str().rsplit_once('@')).map(|(user, _)| user);
    let mut args = vec!["-o".to_owned(), "ConnectTimeout=5".to_owned(), "-T".to_owned()];
    if let Some(user) = user {
        if user.contains(':') {
            return Err(bad());
        }
        args.extend(["-l".to_owned(), user.to_owned()]);
    }
    if let Some(port) = uri.port_u16() {
        args.extend(["-p".to_owned(), port.to_string()]);
    }
    args.extend(["--", host.trim_matches(['[', ']']), "docker", "system", "dial-stdio"].map(str::to_owned));
    Ok(args)
}

/// Opens connections by starting ssh.
#[derive(Clone)]
struct Dialer {
    args: Arc<Vec<String>>,
}

impl tower_service::Service<http::Uri> for Dialer {
    type Response = TokioIo<Dialed>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let args = Arc::clone(&self.args);
        Box::pin(async move {
            let mut child = Command::new("ssh")
                .args(args.iter())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .kill_on_drop(true)
                .spawn()
                .map_err(|e| io::Error::other(format!("ssh cannot be started: {e}")))?;
            let stdin = child.stdin.take().expect("stdin is piped");
            let stdout = child.stdout.take().expect("stdout is piped");
            Ok(TokioIo::new(Dialed { _child: child, stdin, stdout }))
        })
    }
}

/// The two pipes of an ssh process, which ends with them.
struct Dialed {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Dialed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_becomes_arguments() {
        let args = ssh_args("ssh://me@h:2222").unwrap().join(" ");
        assert_eq!(args, "-o ConnectTimeout=5 -T -l me -p 2222 -- h docker system dial-stdio");
        for bad in ["ssh://", "ssh://-oProxyCommand=x", "ssh://u:p@h"] {
            assert!(ssh_args(bad).is_err(), "{bad}");
        }
    }
}
