//! One flow as fast as it goes, in one direction.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Figures, connect};
use crate::pattern::{BLOCK_BYTES, Pattern};

/// Sends until `end`. What counts is what the sink says it received, and the time until it said so: bytes that lie in
/// buffers on the way have not arrived.
pub(super) async fn upload(target: &str, end: Instant) -> io::Result<Figures> {
    let mut stream = connect(target).await?;
    let pattern = Pattern::new();
    let mut sent = 0;
    while Instant::now() < end {
        let block = pattern.block(sent, u64::MAX);
        stream.write_all(&block).await?;
        sent += block.len() as u64;
    }
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let bytes =
        answer["bytes"].as_u64().ok_or_else(|| io::Error::other("the target does not answer as a sink does"))?;
    if bytes != sent {
        return Err(io::Error::other(format!("{sent} bytes sent, and {bytes} received by the sink")));
    }
    Ok(Figures { bytes, ..Figures::default() })
}

/// Receives until `end`.
pub(super) async fn download(target: &str, end: Instant) -> io::Result<Figures> {
    let mut stream = connect(target).await?;
    stream.write_all(b"\n").await?;
    let mut block = vec![0; 4 * BLOCK_BYTES];
    let mut bytes = 0;
    while Instant::now() < end {
        match stream.read(&mut block).await? {
            0 => return Err(io::Error::other("the target ended the stream, a source does not")),
            len => bytes += len as u64,
        }
    }
    Ok(Figures { bytes, ..Figures::default() })
}
