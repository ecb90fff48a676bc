//! UDP echo.

use tokio::net::UdpSocket;

/// Largest payload of a UDP datagram over IPv4: 65,535 - 20 (IP header) - 8 (UDP header), RFC 768.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Sends every datagram back to its sender. Errors concern single datagrams (an ICMP answer to an earlier echo).
pub(crate) async fn echo(socket: UdpSocket) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        if let Ok((len, peer)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..len], peer).await;
        }
    }
}
