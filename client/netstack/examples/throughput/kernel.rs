//! The load: flows of the kernel's TCP, on the other cores.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cpu_time::{CpuTime, Threads};
use crate::stack::{ADDRESS, ANSWER_BYTES, QUESTION_BYTES, Running};
use crate::{CORE, Load};

/// From when all flows are open until it counts: windows grow, and buffers fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Bytes given to or taken from a socket at once.
const BLOCK_BYTES: usize = 256 << 10;
static BLOCK: [u8; BLOCK_BYTES] = [0x5a; BLOCK_BYTES];

/// What a load came to.
pub(crate) struct Measured {
    /// Bytes or requests.
    pub(crate) count: u64,
    pub(crate) elapsed: Duration,
    /// What it took the stack.
    pub(crate) cpu: CpuTime,
}

/// Puts `load` on `stack` by `flows` flows.
pub(crate) fn measure(
    load: Load,
    flows: usize,
    length: Duration,
    cores: usize,
    stack: &Running,
) -> io::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores - 1)
        .on_thread_start(move || stay_off_the_stacks_core(cores))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let counter = if load == Load::Upload { stack.received() } else { Arc::default() };
        let mut streams = Vec::new();
        for _ in 0..flows {
            let stream = TcpStream::connect((ADDRESS, load.port())).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let mut running = JoinSet::new();
        for stream in streams {
            running.spawn(run(load, stream, Arc::clone(&counter)));
        }
        tokio::select! {
            measured = watch(&counter, stack.threads(), length) => measured,
            Some(ended) = running.join_next() => match ended.map_err(io::Error::other)? {
                Ok(()) => Err(io::Error::other("a flow ended early")),
                Err(error) => Err(error),
            },
        }
    })
}

/// Best effort: where it is not allowed, the figures are lower.
fn stay_off_the_stacks_core(cores: usize) {
    let mut others = CpuSet::new();
    (0..cores).filter(|core| *core != CORE).for_each(|core| others.set(core));
    let _ = sched_setaffinity(None, &others);
}

async fn watch(counter: &AtomicU64, stack: &Threads, length: Duration) -> io::Result<Measured> {
    tokio::time::sleep(WARM_UP).await;
    let (start, count, cpu) = (Instant::now(), counter.load(Ordering::Relaxed), stack.now()?);
    tokio::time::sleep(length).await;
    let count = counter.load(Ordering::Relaxed) - count;
    Ok(Measured { count, elapsed: start.elapsed(), cpu: stack.now()?.since(cpu) })
}

async fn run(load: Load, stream: TcpStream, counter: Arc<AtomicU64>) -> io::Result<()> {
    match load {
        Load::Upload => upload(stream).await,
        Load::Download => download(stream, &counter).await,
        Load::Requests => ask(stream, &counter).await,
    }
}

async fn upload(mut stream: TcpStream) -> io::Result<()> {
    loop {
        stream.write_all(&BLOCK).await?;
    }
}

async fn download(mut stream: TcpStream, counter: &AtomicU64) -> io::Result<()> {
    thread_local! {
        static INBOX: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK_BYTES]);
    }
    stream.write_all(b"\n").await?;
    loop {
        stream.readable().await?;
        match INBOX.with_borrow_mut(|inbox| stream.try_read(inbox)) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                counter.fetch_add(len as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn ask(mut stream: TcpStream, counter: &AtomicU64) -> io::Result<()> {
    let mut answer = [0; ANSWER_BYTES];
    loop {
        stream.write_all(&BLOCK[..QUESTION_BYTES]).await?;
        stream.read_exact(&mut answer).await?;
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
