//! Dials for clients, from the place of the agent's pod in the network.
//!
//! What is dialled is the manager's to decide: it has asked its dial policy, and names addresses only
//! ([`tp_protocol::engage::dial`]).

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tp_protocol::engage::dial::Dial;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;
use tp_tunnel::client::{Arrived, Lane};
use tp_tunnel::dial::{Dialled, connect};
use tp_tunnel::read_ahead::ReadAhead;
use tp_tunnel::relay;
use tp_tunnel::standby::Standby;

/// Connections that are open at once; more are refused.
const FLOWS_MAX: usize = 4096;

/// A UDP association without datagrams ends after this time, as those that the manager dials do.
const UDP_IDLE: Duration = Duration::from_secs(120);

/// Pause after a stream has failed: the lane is lost, or the manager has enough of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps streams waiting on `lane` while they are `wanted`, and dials what comes, in `flows`.
pub(crate) async fn run(lane: &Lane, mut wanted: watch::Receiver<bool>, flows: &mut JoinSet<()>) -> Infallible {
    let read_ahead = ReadAhead::default();
    let mut standby = Standby::default();
    let mut waiting = FuturesUnordered::new();
    loop {
        let is_wanted = *wanted.borrow_and_update();
        if !is_wanted {
            waiting.clear();
        }
        while is_wanted && waiting.len() < standby.wanted(Instant::now()) {
            waiting.push(lane.wait_for_dial());
        }
        tokio::select! {
            Some(arrived) = waiting.next() => match arrived {
                Ok(arrived) if flows.len() < FLOWS_MAX => {
                    standby.on_taken(Instant::now());
                    let read_ahead = read_ahead.clone();
                    flows.spawn(async move { dial(arrived, &read_ahead).await });
                }
                Ok(arrived) => {
                    arrived.refuse(&OpenRefused::new(ErrorClass::Exhausted, "the agent has too many connections"));
                }
                Err(error) => {
                    tracing::debug!(%error, "a stream does not wait for what is to be dialled any more");
                    sleep(PAUSE).await;
                }
            },
            Some(ended) = flows.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                }
            }
            Ok(()) = wanted.changed() => {}
            // Nothing is wanted, and nobody is left to want it.
            else => pending().await,
        }
    }
}

/// Dials, and relays until both ends are done.
async fn dial(arrived: Arrived<Dial>, read_ahead: &ReadAhead) {
    let Dial { dst, transport, deadline } = arrived.arrival;
    let late = |_| Err(OpenRefused::new(ErrorClass::TimedOut, format!("{dst} did not answer in time")));
    let dialled = match timeout(deadline, connect(transport, dst)).await.unwrap_or_else(late) {
        Ok(dialled) => dialled,
        Err(why) => {
            tracing::debug!(%dst, %why, "not dialled");
            return arrived.refuse(&why);
        }
    };
    // Fails only when the client has given up meanwhile.
    let Ok(flow) = arrived.connected() else { return };
    let relayed = match dialled {
        Dialled::Tcp(socket) => relay::tcp(flow, socket, read_ahead).await,
        Dialled::Udp(socket) => relay::udp(flow, socket, UDP_IDLE).await,
    };
    tracing::debug!(%dst, error = relayed.error.map(|why| why.to_string()), "a dialled connection has ended");
}
