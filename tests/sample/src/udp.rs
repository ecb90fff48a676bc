//! UDP echo.

use tokio::net::UdpSocket;

/// Largest payload of a UDP datagram, which is IPv6's: 65,535 - 8 (UDP header), RFC 8200 section 3.
const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Sends every datagram back to its sender. Errors concern single datagrams (an ICMP answer to an earlier echo).
pub(crate) async fn echo(socket: UdpSocket) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        if let Ok((len, peer)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..len], peer).await;
        }
    }
}
