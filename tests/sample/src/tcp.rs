//! The TCP services, one function per connection. Half-close is respected by all of them.

use std::io;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::pattern::{BLOCK_BYTES, Pattern};

/// Longest first line that says how many bytes are wanted.
const LINE_BYTES_MAX: u64 = 32;

/// Time for the peer to take the bytes that were sent before a reset, which would else overtake them.
const RESET_DELAY: Duration = Duration::from_millis(200);

/// Sends back what comes in, and closes when the peer has closed.
pub(crate) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

/// Speaks first, as SMTP, SSH and MySQL servers do, then echoes.
pub(crate) async fn greet(mut stream: TcpStream, greeting: String) -> io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    echo(stream).await
}

/// Counts what comes in and, once the peer has closed its side, answers `{"bytes":N}`.
pub(crate) async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut total = 0;
    read_to_end(&mut stream, |block| total += block.len()).await?;
    answer(stream, &serde_json::json!({ "bytes": total })).await
}

/// As [`sink`], and answers with the content's SHA-256 as well.
pub(crate) async fn digest(mut stream: TcpStream) -> io::Result<()> {
    let (mut total, mut hash) = (0, Context::new(&SHA256));
    read_to_end(&mut stream, |block| {
        total += block.len();
        hash.update(block);
    })
    .await?;
    answer(stream, &serde_json::json!({ "bytes": total, "sha256": hex(hash.finish().as_ref()) })).await
}

/// Sends the pattern: as many bytes as the first line says, or without end when that is empty.
pub(crate) async fn source(stream: TcpStream, pattern: Pattern) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(LINE_BYTES_MAX as usize, stream);
    let wanted = read_count(&mut stream).await?;
    send_pattern(stream.get_mut(), &pattern, wanted.unwrap_or(u64::MAX)).await?;
    stream.shutdown().await
}

/// Sends the pattern as [`source`] does (nothing when the first line is empty), then resets the connection.
pub(crate) async fn reset(stream: TcpStream, pattern: Pattern) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(LINE_BYTES_MAX as usize, stream);
    let wanted = read_count(&mut stream).await?.unwrap_or(0);
    send_pattern(stream.get_mut(), &pattern, wanted).await?;
    tokio::time::sleep(RESET_DELAY).await;
    stream.get_ref().set_zero_linger()
}

async fn copy(reader: &mut (impl AsyncReadExt + Unpin), writer: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match reader.read(&mut block).await? {
            0 => return Ok(()),
            len => writer.write_all(&block[..len]).await?,
        }
    }
}

async fn read_to_end(stream: &mut TcpStream, mut on_block: impl FnMut(&[u8])) -> io::Result<()> {
    let mut block = vec![0; 4 * BLOCK_BYTES];
    loop {
        match stream.read(&mut block).await? {
            0 => return Ok(()),
            len => on_block(&block[..len]),
        }
    }
}

async fn answer(mut stream: TcpStream, value: &serde_json::Value) -> io::Result<()> {
    stream.write_all(format!("{value}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Reads the first line; `None` when it is empty or the peer has nothing to say.
async fn read_count(stream: &mut BufReader<TcpStream>) -> io::Result<Option<u64>> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    match line.trim() {
        "" => Ok(None),
        number => number.parse().map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
    }
}

async fn send_pattern(stream: &mut TcpStream, pattern: &Pattern, bytes: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let block = pattern.block(sent, bytes - sent);
        stream.write_all(&block).await?;
        sent += block.len() as u64;
    }
    Ok(())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Connects to a server that serves one connection with `serve`.
    async fn connect<Served>(
        serve: impl FnOnce(TcpStream) -> Served,
    ) -> (TcpStream, tokio::task::JoinHandle<io::Result<()>>)
    where
        Served: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, tokio::spawn(serve(listener.accept().await.unwrap().0)))
    }

    async fn read_all(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn digest_answers_after_the_half_close() {
        let (mut client, _server) = connect(digest).await;
        client.write_all(b"abc").await.unwrap();
        client.shutdown().await.unwrap();
        // The example of FIPS 180-2, appendix B.1.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(read_all(client).await, format!("{{\"bytes\":3,\"sha256\":\"{sha256}\"}}\n"));
    }

    #[tokio::test]
    async fn echo_closes_after_the_last_byte_went_back() {
        let (mut client, _server) = connect(echo).await;
        client.write_all(b"to and fro").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(client).await, "to and fro");
    }

    #[tokio::test]
    async fn source_sends_as_much_as_asked_for() {
        let (mut client, _server) = connect(|stream| source(stream, Pattern::new())).await;
        client.write_all(b"200000\n").await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 200_000);
        assert_eq!(received[..BLOCK_BYTES], Pattern::new().block(0, u64::MAX)[..]);
    }

    #[tokio::test]
    async fn greeting_comes_unasked() {
        let (mut client, _server) = connect(|stream| greet(stream, "220 here\r\n".to_owned())).await;
        let mut greeting = [0; 10];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 here\r\n");
    }

    #[tokio::test]
    async fn reset_comes_behind_the_bytes() {
        let (mut client, server) = connect(|stream| reset(stream, Pattern::new())).await;
        client.write_all(b"1000\n").await.unwrap();
        let mut received = vec![0; 1000];
        client.read_exact(&mut received).await.unwrap();
        server.await.unwrap().unwrap();
        let error = client.read(&mut received).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
