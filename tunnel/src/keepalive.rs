//! HTTP/2 PING on a quiet or busy lane: notices a half-open connection and keeps idle timers from cutting it.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use crate::error::LaneError;

/// Time between two pings. Load balancers cut idle connections after 60 s and more.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long a pong may take. It queues behind the data that the lane has already buffered.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Pings until the peer does not answer. Never returns `Ok`.
pub(crate) async fn run(mut ping_pong: PingPong) -> Result<std::convert::Infallible, LaneError> {
    loop {
        sleep(PING_INTERVAL).await;
        timeout(PONG_TIMEOUT, ping_pong.ping(Ping::opaque()))
            .await
            .map_err(|_| LaneError::TimedOut(PONG_TIMEOUT))??;
    }
}
