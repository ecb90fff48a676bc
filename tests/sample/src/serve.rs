//! Binds all ports, then serves until the pod is told to stop.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::pattern::Pattern;
use crate::{http, tcp, udp};

/// Time that open HTTP requests get after SIGTERM; Kubernetes grants a pod 30 s by default.
const DRAIN: Duration = Duration::from_secs(10);

/// Pause after a failed accept, which is mostly about too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Ports are above 1024, since the pod runs without any capability; 0 picks a free one.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Name in HTTP answers and in the greeting
    #[arg(long, env = "APP_NAME", default_value = "tp-sample")]
    name: String,
    /// HTTP/1.1 and HTTP/2 with prior knowledge
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Echo, over TCP and UDP
    #[arg(long, default_value_t = 7007)]
    echo_port: u16,
    /// Reads to the end of the stream, then answers with the number of bytes
    #[arg(long, default_value_t = 7009)]
    sink_port: u16,
    /// Reads to the end of the stream, then answers with the number of bytes and their SHA-256
    #[arg(long, default_value_t = 7010)]
    digest_port: u16,
    /// Greets before it has been spoken to, then echoes
    #[arg(long, default_value_t = 7013)]
    greeting_port: u16,
    /// Sends as many bytes as the first line says, or without end when it is empty
    #[arg(long, default_value_t = 7019)]
    source_port: u16,
    /// Sends as many bytes as the first line says, then resets the connection
    #[arg(long, default_value_t = 7099)]
    reset_port: u16,
}

/// Serves until SIGTERM or SIGINT; returns early only when a port cannot be bound.
pub(crate) async fn run(args: ServeArgs) -> io::Result<()> {
    let pattern = Pattern::new();
    let mut tasks = JoinSet::new();

    let echo = bind_tcp(args.echo_port).await?;
    tasks.spawn(udp::echo(bind_udp(echo.local_addr()?.port()).await?));
    tasks.spawn(accept(echo, tcp::echo));
    tasks.spawn(accept(bind_tcp(args.sink_port).await?, tcp::sink));
    tasks.spawn(accept(bind_tcp(args.digest_port).await?, tcp::digest));
    let greeting = format!("220 {} ready\r\n", args.name);
    tasks.spawn(accept(bind_tcp(args.greeting_port).await?, move |stream| tcp::greet(stream, greeting.clone())));
    let source = pattern.clone();
    tasks.spawn(accept(bind_tcp(args.source_port).await?, move |stream| tcp::source(stream, source.clone())));
    let reset = pattern.clone();
    tasks.spawn(accept(bind_tcp(args.reset_port).await?, move |stream| tcp::reset(stream, reset.clone())));

    let server = http::Server::new(args.name, pattern);
    let listener = bind_tcp(args.http_port).await?;
    eprintln!("tp-sample: serving, HTTP on {}", listener.local_addr()?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => server.serve(&mut tasks, stream, peer),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = tasks.join_next() => {} // a connection's end is its own affair
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener); // refused from here on, while the requests that are under way come to their end
    let _ = tokio::time::timeout(DRAIN, server.drain()).await;
    Ok(())
}

/// Runs `serve` on every connection, each in a task that ends with this one.
async fn accept<Serve, Served>(listener: TcpListener, serve: Serve)
where
    Serve: Fn(TcpStream) -> Served,
    Served: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve(stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// All addresses of both families, or of IPv4 alone where the kernel has no IPv6.
fn any(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

async fn bind_tcp(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(&any(port)[..]).await.map_err(|e| at_port(&e, "TCP", port))
}

async fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind(&any(port)[..]).await.map_err(|e| at_port(&e, "UDP", port))
}

fn at_port(error: &io::Error, protocol: &str, port: u16) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {protocol} port {port}: {error}"))
}
