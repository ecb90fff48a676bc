//! `tp-sample relay`: a slow, long or lossy way to a TCP server, in user space, for tests and benchmarks.
//!
//! All connections share the bandwidth of each direction fairly, as behind a router with fair queueing (RFC 8290). SIGUSR1
//! cuts them off; those who connect again are served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Bytes of one piece on the way.
const PIECE_BYTES: usize = 16 << 10;

/// Pieces of one direction of one connection on the way: 6.7 Gbit/s at 10 ms.
const PIECES: usize = 512;

/// Pieces leave the bottleneck earlier by this, so that timers of 1 ms do not limit the bandwidth.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Bytes in a packet, for the loss (RFC 879 on Ethernet, with timestamps).
const PACKET_BYTES: usize = 1448;

/// Pass connections on to a server, as a bad network would
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// Where to listen
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// The server
    #[arg(long)]
    target: SocketAddr,
    /// Time that each direction takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Bandwidth of each direction, in Mbit/s; 0 is no limit
    #[arg(long, default_value_t = 0)]
    mbits: u64,
    /// Packets lost, in percent: what is behind a lost one waits for another round trip
    #[arg(long, default_value_t = 0.0)]
    loss_percent: f64,
}

/// One direction, which all connections share.
struct Link {
    delay: Duration,
    bytes_per_second: Option<f64>,
    loss: f64,
    /// When the last piece has left the bottleneck. Its lock is taken in turn, so each connection has one piece waiting.
    busy_until: Mutex<Instant>,
}

/// Runs `tp-sample relay` until it is killed.
///
/// # Errors
/// When the port is not free.
pub(crate) async fn run(args: RelayArgs) -> io::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    let mut cut = signal(SignalKind::user_defined1())?;
    let mut end = signal(SignalKind::terminate())?;
    let (up, down) = (Arc::new(Link::new(&args)), Arc::new(Link::new(&args)));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (near, _) = accepted?;
                let (up, down) = (Arc::clone(&up), Arc::clone(&down));
                connections.spawn(async move {
                    // Either side's failure is the end of the connection, which the other side sees.
                    let _ = connection(near, args.target, &up, &down).await;
                });
            }
            Some(_) = connections.join_next() => {}
            _ = cut.recv() => connections.abort_all(),
            _ = end.recv() => return Ok(()),
        }
    }
}

async fn connection(near: TcpStream, target: SocketAddr, up: &Link, down: &Link) -> io::Result<()> {
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(pass(near_read, far_write, up), pass(far_read, near_write, down))?;
    Ok(())
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, link: &Link) -> io::Result<()> {
    let (pieces_tx, mut pieces) = mpsc::channel::<(Instant, Bytes)>(PIECES);
    let take = async move {
        let mut due = Instant::now();
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            let len = from.read_buf(&mut piece).await?;
            due = due.max(link.arrival(len).await);
            if len == 0 || pieces_tx.send((due, piece.freeze())).await.is_err() {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(take, give)?;
    Ok(())
}

impl Link {
    fn new(args: &RelayArgs) -> Self {
        Self {
            delay: Duration::from_millis(args.delay_ms),
            bytes_per_second: (args.mbits > 0).then(|| args.mbits as f64 * 1e6 / 8.0),
            loss: args.loss_percent / 100.0,
            busy_until: Mutex::new(Instant::now()),
        }
    }

    /// Takes a piece through the bottleneck, and returns when it arrives.
    async fn arrival(&self, len: usize) -> Instant {
        let mut left_at = Instant::now();
        if let Some(bytes_per_second) = self.bytes_per_second {
            let mut busy_until = self.busy_until.lock().await;
            left_at = (*busy_until).max(Instant::now()) + Duration::from_secs_f64(len as f64 / bytes_per_second);
            *busy_until = left_at;
            sleep_until(left_at - TIMER_SLACK).await;
        }
        let packets = i32::try_from(len.div_ceil(PACKET_BYTES)).unwrap_or(i32::MAX);
        let is_lost = fraction() > (1.0 - self.loss).powi(packets);
        left_at + if is_lost { self.delay * 3 } else { self.delay }
    }
}

/// A random number, from 0 to 1.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
