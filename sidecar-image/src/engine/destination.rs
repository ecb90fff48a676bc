//! Where traffic can go.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;

use super::limits;
use super::stream::BoxStream;

/// What becomes of an attempt to reach a destination.
pub type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<T, OpenRefused>> + Send + 'a>>;

/// The app, or the client's side of an engagement.
///
/// Dropping what a method returns gives the attempt up.
pub trait Destination: Send + Sync + 'static {
    /// Opens a byte stream on behalf of `peer`.
    fn connect(&self, peer: SocketAddr) -> Opening<'_, BoxStream>;

    /// Opens an association for datagrams on behalf of `peer`.
    fn associate(&self, peer: SocketAddr) -> Opening<'_, Box<dyn Datagrams>>;
}

/// Datagrams from and to one peer.
pub trait Datagrams: Send + Sync {
    /// Sends one datagram.
    fn poll_send(&self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<usize>>;

    /// Receives one datagram. An error of the kind [`io::ErrorKind::UnexpectedEof`] is an end in good order.
    fn poll_recv(&self, cx: &mut Context<'_>, datagram: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
}

impl Datagrams for UdpSocket {
    fn poll_send(&self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<usize>> {
        UdpSocket::poll_send(self, cx, datagram)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, datagram: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        UdpSocket::poll_recv(self, cx, datagram)
    }
}

/// An app that listens on one of a few addresses: the pod's loopback, or only the pod's own address.
#[derive(Debug)]
pub struct App {
    addresses: Vec<SocketAddr>,
    /// The one that worked last.
    preferred: AtomicUsize,
}

impl App {
    /// An app on the first of `addresses` that accepts.
    ///
    /// # Panics
    /// When there is none.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        assert!(!addresses.is_empty(), "an app has an address");
        Self { addresses, preferred: AtomicUsize::new(0) }
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let others = (0..self.addresses.len()).filter(|index| *index != preferred);
        let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
        for index in std::iter::once(preferred).chain(others) {
            match dial(self.addresses[index], limits::CONNECT).await {
                Ok(socket) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(socket);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Destination for App {
    fn connect(&self, _: SocketAddr) -> Opening<'_, BoxStream> {
        Box::pin(async { self.dial().await.map(|socket| Box::new(socket) as BoxStream).map_err(refused) })
    }

    fn associate(&self, _: SocketAddr) -> Opening<'_, Box<dyn Datagrams>> {
        // A datagram tells nothing of who listens, so the first address it is.
        let bound = bind(self.addresses[0]);
        Box::pin(async { bound.await.map(|socket| Box::new(socket) as Box<dyn Datagrams>).map_err(refused) })
    }
}

/// Connects to `address` within `limit`.
pub(crate) async fn dial(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = timeout(limit, TcpStream::connect(address)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))?;
    // Who sends has decided to.
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Makes a socket for datagrams to and from `address`.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Tells what a socket said, as its caller is told.
pub(crate) fn refused(error: io::Error) -> OpenRefused {
    OpenRefused::new(ErrorClass::of_io(&error), error.to_string())
}
