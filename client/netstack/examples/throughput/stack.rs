//! The stack on a thread of its own, driven as the daemon drives it, with services in place of the tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep_until;
use tp_netstack::{Event, FlowError, FlowId, FlowKey, Netstack, NetstackConfig, TunId};

use crate::CORE;
use crate::cpu_time::Threads;
use crate::tun::{TUN_MTU, TUN_NAME, Tun};

/// Where the services are: every address is the stack's.
pub(crate) const ADDRESS: &str = "192.0.2.2";
/// Takes all that comes.
pub(crate) const SINK: u16 = 7009;
/// Sends without end, once it has been sent anything.
pub(crate) const SOURCE: u16 = 7019;
/// Answers questions.
pub(crate) const ANSWERS: u16 = 8080;

/// A question, and its answer.
pub(crate) const QUESTION_BYTES: usize = 128;
pub(crate) const ANSWER_BYTES: usize = 1024;

const TUN: TunId = TunId(0);
const BATCH_PACKETS: usize = 64;
const PACKET_BYTES_MAX: usize = 16 + 65_535;
const BLOCK_BYTES: usize = 64 << 10;
static BLOCK: [u8; BLOCK_BYTES] = [0x5a; BLOCK_BYTES];

/// The thread.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
    received: Arc<AtomicU64>,
    threads: Threads,
}

impl Running {
    /// Makes the device and drives a stack behind it.
    pub(crate) fn start() -> io::Result<Self> {
        let tun = Tun::create()?;
        ip(&format!("address add 192.0.2.1/24 dev {TUN_NAME}"))?;
        ip(&format!("link set {TUN_NAME} mtu {TUN_MTU} txqueuelen 20000 up"))?;
        let (stop, stopped) = oneshot::channel();
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let (id_tx, id_rx) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            id_tx.send(gettid()).map_err(io::Error::other)?;
            let mut core = CpuSet::new();
            core.set(CORE);
            sched_setaffinity(None, &core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    ended = Server::new(counter).drive(tun) => ended,
                    _ = stopped => Ok(()),
                }
            })
        });
        let threads = Threads::of_stack(id_rx.recv().map_err(io::Error::other)?)?;
        Ok(Self { stop, thread, received, threads })
    }

    /// Who works for the stack.
    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Bytes that the sink has taken.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Ends the thread, and with it the device.
    pub(crate) fn stop(self) -> io::Result<()> {
        // It has ended already when nobody listens; why is what it returns.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| io::Error::other("the stack's thread panicked"))?
    }
}

fn ip(arguments: &str) -> io::Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("`ip {arguments}` failed"))) }
}

struct Server {
    stack: RefCell<Netstack>,
    received: Arc<AtomicU64>,
}

impl Server {
    fn new(received: Arc<AtomicU64>) -> Rc<Self> {
        let stack = RefCell::new(Netstack::new(NetstackConfig::default(), Instant::now()));
        Rc::new(Self { stack, received })
    }

    async fn drive(self: Rc<Self>, tun: Tun) -> io::Result<()> {
        self.stack.borrow_mut().add_tun(TUN, tun.offload());
        let tun = tun.register()?;
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            self.read_packets(&tun, &mut packet)?;
            while let Some(event) = self.next_event() {
                if let Event::TcpSyn { flow, key } = event {
                    let server = Rc::clone(&self);
                    spawn_local(async move { server.serve(flow, key).await });
                }
            }
            tokio::task::yield_now().await;
            let blocked = self.write_packets(&tun)?;
            let timeout = self.stack.borrow().poll_timeout();
            tokio::select! {
                readable = tun.readable() => drop(readable?),
                writable = tun.writable(), if blocked => drop(writable?),
                () = poll_fn(|cx| self.stack.borrow_mut().poll_ready(cx)), if !blocked => {}
                () = sleep_until(timeout.unwrap_or_else(Instant::now).into()), if timeout.is_some() => {
                    self.stack.borrow_mut().handle_timeout(Instant::now());
                }
            }
        }
    }

    fn read_packets(&self, tun: &AsyncFd<Tun>, packet: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH_PACKETS {
            match tun.try_io(Interest::READABLE, |tun| tun.read(packet)) {
                Ok(len) => self.stack.borrow_mut().handle_packet(TUN, &packet[..len], Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns whether the device took no more.
    fn write_packets(&self, tun: &AsyncFd<Tun>) -> io::Result<bool> {
        let mut stack = self.stack.borrow_mut();
        for _ in 0..BATCH_PACKETS {
            let Some(packet) = stack.poll_transmit(Instant::now()) else { break };
            match tun.try_io(Interest::WRITABLE, |tun| tun.write(packet.bytes)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stack.transmit_blocked();
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn next_event(&self) -> Option<Event> {
        self.stack.borrow_mut().poll_event()
    }

    async fn serve(&self, flow: FlowId, key: FlowKey) {
        if self.stack.borrow_mut().accept(flow).is_err() {
            return;
        }
        // A flow that its client ended is no error here.
        let _ = match key.dst.port() {
            SINK => self.sink(flow).await,
            SOURCE => self.source(flow).await,
            _ => self.answers(flow).await,
        };
        self.stack.borrow_mut().abort(flow);
    }

    async fn sink(&self, flow: FlowId) -> Result<(), FlowError> {
        while let Some(data) = self.recv(flow).await? {
            self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn source(&self, flow: FlowId) -> Result<(), FlowError> {
        self.recv(flow).await?;
        loop {
            self.send(flow, Bytes::from_static(&BLOCK)).await?;
        }
    }

    async fn answers(&self, flow: FlowId) -> Result<(), FlowError> {
        let mut asked = 0;
        while let Some(data) = self.recv(flow).await? {
            asked += data.len();
            while asked >= QUESTION_BYTES {
                asked -= QUESTION_BYTES;
                self.send(flow, Bytes::from_static(&BLOCK[..ANSWER_BYTES])).await?;
            }
        }
        Ok(())
    }

    async fn recv(&self, flow: FlowId) -> Result<Option<Bytes>, FlowError> {
        poll_fn(|cx| self.stack.borrow_mut().poll_recv(flow, BLOCK_BYTES, cx)).await
    }

    async fn send(&self, flow: FlowId, mut payload: Bytes) -> Result<(), FlowError> {
        poll_fn(|cx| self.stack.borrow_mut().poll_send(flow, &mut payload, cx)).await
    }
}
