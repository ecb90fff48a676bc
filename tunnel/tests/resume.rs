//! Lanes whose byte streams are cut at any byte, as the API server's restart, a sleep or another Wi-Fi do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tp_protocol::hello::{ClientHello, Welcome};
use tp_protocol::open::{Open, Transport};
use tp_tunnel::carrier::{ALIVE_INTERVAL, CarrierState, LaneHandle, SILENCE_MAX};
use tp_tunnel::client::{self, Connected, Lane};
use tp_tunnel::error::FlowError;
use tp_tunnel::server::{self, Incoming, LaneServer};

/// Seeded runs of the test with random cuts.
const SEEDS: u64 = 2000;

/// A small generator, so that a seed names a run (SplitMix64, Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// The manager's end: echoes every flow, and keeps its lane for the next byte stream.
#[derive(Clone, Default)]
struct Manager {
    lane: Arc<watch::Sender<Answered>>,
}

/// What became of the first hello.
#[derive(Clone, Default)]
enum Answered {
    #[default]
    NotYet,
    /// The answer was cut off, though the client may have all of it.
    Lost,
    Lane(LaneHandle),
}

impl Manager {
    fn welcome() -> Welcome {
        Welcome { version: 1, resume_grace_ms: 120_000, ..Welcome::default() }
    }

    /// Serves one byte stream. Hellos are cut as well, so nothing here may be relied on.
    async fn serve(self, io: DuplexStream) {
        let Ok(pending) = server::accept(io).await else { return };
        let kept = self.lane.borrow().clone();
        match kept {
            Answered::Lane(handle) if pending.hello.resume_received.is_some() => {
                let _ = pending.resume(Self::welcome(), &handle).await;
            }
            _ => match pending.welcome(Self::welcome()).await {
                Ok(lane) => {
                    self.lane.send_replace(Answered::Lane(lane.handle().clone()));
                    echo(lane).await;
                }
                Err(_) => _ = self.lane.send_replace(Answered::Lost),
            },
        }
    }

    /// Whether there is a lane, once the first hello is answered.
    async fn has_lane(&self) -> bool {
        let mut lane = self.lane.subscribe();
        let answered = lane.wait_for(|answered| !matches!(answered, Answered::NotYet)).await.unwrap();
        matches!(*answered, Answered::Lane(_))
    }
}

async fn echo(mut lane: LaneServer) {
    let mut flows = JoinSet::new();
    while let Some(Ok(incoming)) = lane.next().await {
        let Incoming::Open(_, responder) = incoming else { panic!("the test opens flows only") };
        flows.spawn(async move {
            let (mut sender, mut receiver) = responder.accept().unwrap().split();
            while let Some(data) = receiver.data().await {
                let Ok(data) = data else { return };
                receiver.release(data.len());
                if sender.send_all(data).await.is_err() {
                    return;
                }
            }
            let _ = sender.finish();
        });
    }
}

/// Moves bytes from one end of a byte stream to the other until `limit` of them have passed in one direction.
async fn cut_after(near: DuplexStream, far: DuplexStream, up_limit: u64, down_limit: u64) {
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    tokio::select! {
        () = pass(near_read, far_write, up_limit) => {}
        () = pass(far_read, near_write, down_limit) => {}
    }
}

async fn pass(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, limit: u64) {
    let mut from = from.take(limit);
    let mut buffer = vec![0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// A byte stream to the manager through a relay that cuts it.
fn byte_stream(manager: &Manager, random: &mut Random, tasks: &mut JoinSet<()>) -> DuplexStream {
    let (near, relay_near) = tokio::io::duplex(1 << (8 + random.below(8)));
    let (relay_far, far) = tokio::io::duplex(1 << (8 + random.below(8)));
    let (up, down) = (100 + random.below(50_000), 100 + random.below(50_000));
    tasks.spawn(cut_after(relay_near, relay_far, up, down));
    tasks.spawn(manager.clone().serve(far));
    near
}

fn hello(resume_received: Option<u64>) -> ClientHello {
    ClientHello { resume_received, ..ClientHello::new("0.1.0", "test") }
}

/// Opens a flow, sends `payload` and returns what comes back.
async fn send_and_receive(lane: &Lane, payload: Bytes) -> Result<Vec<u8>, FlowError> {
    let flow = lane.open(&Open::new(Transport::Tcp, "10.0.0.1:80".parse().unwrap())).await.unwrap();
    let (mut sender, mut receiver) = flow.split();
    let send = async {
        sender.send_all(payload).await?;
        sender.finish()
    };
    let receive = async {
        let mut received = Vec::new();
        while let Some(data) = receiver.data().await {
            let data = data?;
            receiver.release(data.len());
            received.extend_from_slice(&data);
        }
        Ok(received)
    };
    tokio::try_join!(send, receive).map(|((), received)| received)
}

#[tokio::test]
async fn cuts_at_any_byte_lose_nothing() {
    let mut cuts = 0;
    for seed in 0..SEEDS {
        let random = &mut Random(seed);
        let tasks = &mut JoinSet::new();
        let (manager, Connected { lane, driver, handle, .. }) = loop {
            let manager = Manager::default();
            let io = byte_stream(&manager, random, tasks);
            if let Ok(connected) = client::connect(io, &hello(None)).await
                && manager.has_lane().await
            {
                break (manager, connected);
            }
        };
        tasks.spawn(async { _ = driver.await });
        let sizes = [random.below(150_000), random.below(2000), random.below(30_000)];
        let payloads = sizes.map(|size| (0..size).map(|n| (n ^ (n >> 8) ^ seed) as u8).collect::<Bytes>());
        let work = async {
            let echoes = payloads.each_ref().map(|payload| send_and_receive(&lane, payload.clone()));
            let [a, b, c] = echoes;
            tokio::try_join!(a, b, c)
        };
        let keep_up = async {
            while let CarrierState::Lost(_) = handle.lost().await {
                cuts += 1;
                let received = handle.detach("cut");
                let io = byte_stream(&manager, random, tasks);
                if let Ok(admitted) = client::say_hello(io, &hello(Some(received))).await {
                    assert!(admitted.welcome.resume_received.is_some(), "seed {seed}");
                    admitted.resume(&handle).unwrap();
                }
            }
        };
        let echoed = tokio::select! {
            echoed = tokio::time::timeout(Duration::from_secs(30), work) => echoed,
            () = keep_up => panic!("seed {seed}: the lane ended"),
        };
        let (a, b, c) = echoed.unwrap_or_else(|_| panic!("seed {seed} stalls")).unwrap();
        for (echoed, payload) in [a, b, c].iter().zip(&payloads) {
            assert!(echoed[..] == payload[..], "seed {seed}: {} of {} bytes", echoed.len(), payload.len());
        }
    }
    assert!(cuts > SEEDS, "{cuts} cuts in {SEEDS} runs prove little");
}

async fn pair(manager: &Manager) -> (Connected, tokio::task::AbortHandle) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(manager.clone().serve(far));
    let connected = client::connect(near, &hello(None)).await.unwrap();
    (connected, serving.abort_handle())
}

#[tokio::test(start_paused = true)]
async fn idle_lane_stays_and_a_silent_one_is_lost() {
    let manager = Manager::default();
    let (Connected { lane, driver, handle, .. }, _) = pair(&manager).await;
    tokio::spawn(driver);
    let a_day = Duration::from_secs(24 * 60 * 60);
    assert!(tokio::time::timeout(a_day, handle.lost()).await.is_err(), "an idle lane shows life");
    assert_eq!(send_and_receive(&lane, Bytes::from_static(b"still here")).await.unwrap(), b"still here");

    // A byte stream whose other end has gone without a word.
    let received = handle.detach("test");
    let (near, mut far) = tokio::io::duplex(64 << 10);
    handle.attach(Box::new(near), manager_received(&manager)).unwrap();
    let start = tokio::time::Instant::now();
    let lost = handle.lost().await;
    assert!(matches!(&lost, CarrierState::Lost(why) if why.contains("no sign of life")), "{lost:?}");
    assert_eq!(start.elapsed().as_secs(), SILENCE_MAX.as_secs());
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    let signs = SILENCE_MAX.as_secs() / ALIVE_INTERVAL.as_secs();
    assert_eq!(said.len() as u64, signs * 12, "it showed life itself, after {received} bytes");
}

fn manager_received(manager: &Manager) -> u64 {
    let Answered::Lane(handle) = &*manager.lane.borrow() else { panic!("the manager has no lane") };
    handle.detach("test")
}

#[tokio::test]
async fn lane_that_is_given_up_fails_its_flows() {
    let manager = Manager::default();
    let (Connected { lane, driver, handle, .. }, serving) = pair(&manager).await;
    let driver = tokio::spawn(driver);
    let flow = lane.open(&Open::new(Transport::Tcp, "10.0.0.1:80".parse().unwrap())).await.unwrap();
    let (_sender, mut receiver) = flow.split();
    serving.abort();
    assert!(matches!(handle.lost().await, CarrierState::Lost(_)));
    handle.fail("nobody comes back");
    assert!(matches!(receiver.data().await, Some(Err(FlowError::Cancelled(_)))));
    let error = driver.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("nobody comes back"), "{error}");
    let (near, _far) = tokio::io::duplex(64);
    assert!(handle.attach(Box::new(near), 0).is_err());
}

#[tokio::test]
async fn peer_that_claims_too_much_ends_the_lane() {
    let manager = Manager::default();
    let (Connected { driver, handle, .. }, _) = pair(&manager).await;
    let driver = tokio::spawn(driver);
    let (near, _far) = tokio::io::duplex(64);
    assert!(handle.attach(Box::new(near), u64::MAX).is_err());
    assert_eq!(handle.attached().await, CarrierState::Ended);
    assert!(driver.await.unwrap().is_err());
}
